package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/auth"
	"github.com/indigomail/indigo/internal/lists"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
)

// password is how a command is given a new password, and how it is to be stored; all may be left as it is.
type password struct {
	// operand is the password, or - for standard input; file is what it is read from. Without either it is asked for at a terminal, when ask is
	// set and there is one, or made up and printed.
	operand, file string
	ask           bool
	// length is that of a made-up password; 0 means 26 letters.
	length int
	// stored says that a stored form is given, in the place of a password.
	stored bool
	// hash, scram, salt (base64) and iterations go before the settings.
	hash, scram, salt string
	iterations        int
	keepClear, force  bool
}

// forms gets the password, judges it and gives what the columns pw_passwd and scram are to hold. tell prints a made-up password, and what a kept one means;
// it is to be called when the database has them.
func (app *App) forms(ctx context.Context, data string, who addr.Address, p password) (passwd, kept string, tell func(), err error) {
	if p.stored {
		passwd, kept, err = app.storedForms(who, p)
		return passwd, kept, func() {}, err
	}
	view, err := passwordSettings(data)
	if err != nil {
		return "", "", nil, err
	}
	form, err := p.form(view)
	if err != nil {
		return "", "", nil, err
	}
	text, madeUp, err := app.getPassword(who, p)
	if err != nil {
		return "", "", nil, err
	}
	if !madeUp {
		if err := app.judge(ctx, data, view, who, text, p.force); err != nil {
			return "", "", nil, err
		}
	}
	if passwd, kept, err = form.Store(text); err != nil {
		return "", "", nil, err
	}
	return passwd, kept, func() {
		if p.keepClear {
			dangers := "; who gets at the database has it"
			if form.Encrypt {
				dangers = fmt.Sprintf(", encrypted; who gets at the database and at %s has it", service.PasswordKeys(data, view).File())
			}
			fmt.Fprintf(app.Err, "%s: the password itself is kept in the database, for CRAM%s. To undo, set it again without -C or --keep-clear.\n", who, dangers)
		}
		if madeUp {
			fmt.Fprintf(app.Out, "password of %s: %s\n", who, text)
		}
	}, nil
}

// passwordSettings gives the settings of data; what is wrong with those of passwords is an error, and with others none of the command's.
func passwordSettings(data string) (*settings.View, error) {
	snapshot, problems := settings.Inspect(data)
	for _, p := range problems {
		for _, one := range []*settings.Setting{settings.PasswordHash.Setting, settings.PasswordSCRAM.Setting, settings.PasswordKept.Setting, settings.PasswordKeys.Setting, settings.PasswordLength.Setting, settings.BadPasswords.Setting} {
			if strings.HasPrefix(filepath.Base(p.File), one.File) {
				return nil, fmt.Errorf("settings: %s", p)
			}
		}
	}
	return snapshot.View("all"), nil
}

// form gives what options, the environment and the settings say of how a password is stored, in this order.
func (p password) form(view *settings.View) (auth.Form, error) {
	form, err := service.PasswordForm(view, cmp.Or(p.hash, settings.FromEnvironment().Get(settings.PasswordHash.Name)))
	if err != nil {
		return form, err
	}
	if strings.EqualFold(p.scram, "none") {
		form.SCRAM = ""
	} else if p.scram != "" {
		if form.SCRAM, err = auth.ParseSCRAM(p.scram); err != nil {
			return form, err
		}
	}
	if p.salt != "" {
		if form.Salt, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(p.salt, "=")); err != nil {
			return form, errors.New("the salt is not in base64: letters, digits, + and /")
		}
	}
	form.Iterations, form.KeepClear = p.iterations, p.keepClear
	return form, form.Check()
}

// judge asks the policy of the settings; force passes over what it refuses.
func (app *App) judge(ctx context.Context, data string, view *settings.View, who addr.Address, text string, force bool) error {
	finder := lists.New(data)
	defer finder.Close()
	err := service.PasswordPolicy(view, finder).Check(ctx, who, text)
	if errors.Is(err, auth.ErrPolicy) && force {
		fmt.Fprintf(app.Err, "%s: %v; it is set all the same\n", who, err)
		return nil
	}
	if errors.Is(err, auth.ErrPolicy) {
		return fmt.Errorf("%w (`indigo user passwd --force` sets it all the same)", err)
	}
	return err
}

// storedForms takes a stored form as it is, when it is one.
func (app *App) storedForms(who addr.Address, p password) (passwd, kept string, err error) {
	if p.hash != "" || p.scram != "" || p.salt != "" || p.iterations != 0 || p.keepClear || p.length != 0 {
		return "", "", errors.New("a stored form is taken as it is: -e and --stored go with no other option for the password")
	}
	form := p.operand
	switch {
	case form == "-" || p.file != "":
		if form, err = app.readPassword(cmp.Or(p.file, "-")); err != nil {
			return "", "", err
		}
	case form == "":
		return "", "", errors.New("the stored form of the password must be given, as an operand behind -e or in a --password-file")
	}
	passwd, kept = auth.SplitStored(form)
	s, err := auth.ParseStored(passwd, kept)
	switch {
	case errors.Is(err, auth.ErrNoPassword):
		fmt.Fprintf(app.Err, "%s: this locks the account: no password fits\n", who)
	case err != nil:
		return "", "", err
	case s.MaybeDES():
		fmt.Fprintf(app.Err, "%s: this has the form of a hash by DES, and lets nobody in; `indigo user passwd %s` sets a password\n", who, who)
	case s.Bare:
		fmt.Fprintf(app.Err, "%s: this is no hash but a password in clear text: PLAIN and LOGIN refuse it, and CRAM takes it where ENABLE_CRAM is set; -C keeps one for CRAM beside a hash\n", who)
	}
	return passwd, kept, nil
}

// getPassword gets the password from where p says.
func (app *App) getPassword(who addr.Address, p password) (text string, madeUp bool, err error) {
	given := p.operand != "" || p.file != ""
	switch {
	case given && p.length != 0:
		return "", false, errors.New("with -r there must be no password")
	case p.operand != "" && p.operand != "-":
		return p.operand, false, nil
	case given:
		text, err = app.readPassword(cmp.Or(p.file, "-"))
		return text, false, err
	case p.length != 0:
		text, err = randomPassword(p.length)
		return text, true, err
	}
	if terminal, ok := app.In.(*os.File); ok && p.ask && term.IsTerminal(int(terminal.Fd())) {
		text, err = app.askPassword(terminal, who)
		return text, false, err
	}
	return rand.Text(), true, nil
}

// randomPassword makes up length letters and digits.
func randomPassword(length int) (string, error) {
	if length < 8 || length > 64 {
		return "", fmt.Errorf("a made-up password has 8 to 64 letters, not %d", length)
	}
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	text := make([]byte, length)
	for i := range text {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(letters))))
		if err != nil {
			return "", err
		}
		text[i] = letters[n.Int64()]
	}
	return string(text), nil
}

// askPassword asks twice at a terminal (wiki 2505), which does not show what is typed.
func (app *App) askPassword(terminal *os.File, who addr.Address) (string, error) {
	fd := int(terminal.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("terminal: %w", err)
	}
	// An interrupt must not leave the terminal without echo.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-done:
		case s := <-signals:
			term.Restore(fd, before)
			signal.Reset()
			syscall.Kill(os.Getpid(), s.(syscall.Signal))
		}
	}()
	defer func() {
		signal.Stop(signals)
		close(done)
		<-ended
	}()
	var typed [2]string
	for i, question := range []string{"New IndiMail password for " + who.String() + ": ", "Retype new IndiMail password: "} {
		fmt.Fprint(app.Err, question)
		text, err := term.ReadPassword(fd)
		fmt.Fprintln(app.Err)
		if err != nil {
			return "", fmt.Errorf("no password was typed: %w", err)
		}
		typed[i] = string(text)
	}
	if typed[0] != typed[1] {
		return "", errors.New("the two passwords are not the same; nothing was changed")
	}
	return typed[0], nil
}

// passwordFlags are the flags of the commands that set a password.
func passwordFlags(cmd *cobra.Command, p *password) {
	f := cmd.Flags()
	f.StringVar(&p.file, "password-file", "", "file with the password, - for standard input (default: one is made up and printed)")
	f.BoolVar(&p.stored, "stored", false, "the file has a stored form, which is kept as it is")
	f.StringVar(&p.hash, "hash", "", "ARGON2ID, BCRYPT, SHA512, SHA256 or MD5 (default: PASSWORD_HASH)")
	f.StringVar(&p.scram, "scram", "", "also keep keys for SCRAM-SHA-1, SCRAM-SHA-256 or SCRAM-SHA-512, or none (default: PASSWORD_SCRAM)")
	f.IntVar(&p.iterations, "iterations", 0, "iterations of SCRAM's keys (default 4096)")
	f.BoolVar(&p.keepClear, "keep-clear", false, "also keep the password itself, for CRAM, DIGEST-MD5 and APOP, encrypted unless PASSWORD_SECRETS is clear")
	f.BoolVar(&p.force, "force", false, "set a password that the policy refuses")
}

// oldPasswordOptions are those of IndiMail's programs that set a password.
const (
	oldPasswordOptions = "er:h:m:CS:I:"
	passwordUsage      = "[-e] [-r LENGTH] [-h HASH] [-C] [-m SCRAM] [-S SALT] [-I ITERATIONS]"
)

// oldPassword reads oldPasswordOptions.
func oldPassword(operand string, options map[byte]string) (p password, err error) {
	_, stored := options['e']
	_, clear := options['C']
	p = password{operand: operand, ask: true, stored: stored, hash: options['h'], scram: options['m'], salt: options['S'], keepClear: clear}
	for letter, into := range map[byte]*int{'r': &p.length, 'I': &p.iterations} {
		if text, given := options[letter]; given {
			if *into, err = strconv.Atoi(text); err != nil || *into < 1 {
				return p, fmt.Errorf("option -%c: %q is no number from 1 up", letter, text)
			}
		}
	}
	return p, nil
}

// incrypt prints a password's form of crypt(3), in quotes (wiki 2582).
func (app *App) incrypt(operand string, options map[byte]string) error {
	text := operand
	var err error
	if text == "-" {
		if text, err = app.readPassword("-"); err != nil {
			return err
		}
	}
	if err := auth.ValidPassword(text); err != nil {
		return err
	}
	method, err := auth.ParseMethod(cmp.Or(options['h'], settings.FromEnvironment().Get(settings.PasswordHash.Name), "SHA256"))
	if err != nil {
		return err
	}
	salt := options['S']
	// crypt(3) takes a whole form in a salt's place, and the method from it.
	if strings.HasPrefix(salt, "$") {
		parts := strings.Split(salt, "$")
		known, ok := map[string]string{"1": "MD5", "5": "SHA256", "6": "SHA512"}[parts[1]]
		if !ok || len(parts) < 3 || len(parts) > 4 {
			return errors.New("a salt of the form $1$, $5$ or $6$SALT$ is taken, without rounds")
		}
		method, salt = known, parts[2]
	}
	hash, err := auth.Crypt(method, text, salt, auth.CryptRounds)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(app.Out, "%q\n", hash)
	return err
}

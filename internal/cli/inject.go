package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"sync"
	"time"

	"github.com/indigomail/indigo/internal/addr"
	"github.com/indigomail/indigo/internal/bounce"
	"github.com/indigomail/indigo/internal/compose"
	"github.com/indigomail/indigo/internal/inject"
	"github.com/indigomail/indigo/internal/message"
	"github.com/indigomail/indigo/internal/policy"
	"github.com/indigomail/indigo/internal/queue"
	"github.com/indigomail/indigo/internal/service"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/smtpd"
	"github.com/indigomail/indigo/internal/wire"
)

// injectPrograms are the programs by which people and programs of the host send mail. Their exit codes are qmail's: 0, 100 when
// trying again is of no use, 111 when it is; those of qmail-queue are its own.
func (app *App) injectPrograms() map[string]func([]string) int {
	named := func(name string, run func(context.Context, []string) error) func([]string) int {
		return func(args []string) int {
			err := run(context.Background(), args)
			if err == nil {
				return 0
			}
			fmt.Fprintf(app.Err, "%s: %v\n", name, err)
			var usage usageError
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.ExitCode() > 0 {
				return exit.ExitCode()
			}
			if errors.As(err, &usage) {
				return 100
			}
			if code := inject.ExitCode(err); code > 10 && code <= 40 {
				return 100
			}
			return 111
		}
	}
	return map[string]func([]string) int{
		"qmail-queue":     app.qmailQueue,
		"qmail-multi":     app.qmailMulti,
		"qmail-nullqueue": app.qmailNullqueue,
		"qmail-inject":    named("qmail-inject", app.qmailInject),
		"sendmail":        named("sendmail", app.sendmail),
		"mailsubj":        named("mailsubj", app.mailsubj),
		"predate":         named("predate", app.predate),
		"datemail":        named("datemail", func(ctx context.Context, args []string) error { return app.dated(ctx, args, app.sendmail) }),
		"forward":         named("forward", app.forward),
		"irmail":          named("irmail", app.irmail),
		"maildirdeliver":  named("maildirdeliver", app.maildirdeliver),
		"preline":         app.preline,
	}
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// local gives the environment of a program of the host's users, with the variables of .defaultqueue and defaultqueue over
// it (wiki 384-386); anyUser as in settings.Environment.Local.
func (app *App) local(anyUser bool) (settings.Environment, *inject.Client, error) {
	e, err := settings.FromEnvironment().Local(anyUser)
	if err != nil {
		return e, nil, fmt.Errorf("defaultqueue: %w", err)
	}
	e, client := client(e)
	return e, client, nil
}

// environment gives the environment and the client for the data directory that it names.
func (app *App) environment() (settings.Environment, *inject.Client) {
	return client(settings.FromEnvironment())
}

func client(e settings.Environment) (settings.Environment, *inject.Client) {
	if dir := e.Get("QUEUEDIR"); dir != "" {
		// A queue of its own takes its mail itself.
		if _, within := service.Within(e.Data, dir); !within && service.IsQueue(dir) {
			return e, inject.NewClient(dir)
		}
	}
	return e, inject.NewClient(e.Data)
}

// qmailQueue is qmail-queue: the message on descriptor 0, the envelope on descriptor 1.
func (app *App) qmailQueue([]string) int {
	return app.queueFrom(app.In)
}

func (app *App) queueFrom(content io.Reader) int {
	e, client := app.environment()
	envelope, ok := app.Out.(io.Reader)
	if !ok {
		return inject.ExitEnvelope
	}
	// The message comes first, and a program may write the envelope only when it was read.
	spool, err := os.CreateTemp("", "indigo-queue")
	if err != nil {
		fmt.Fprintln(app.Err, "qmail-queue:", err)
		return inject.ExitWrite
	}
	defer spool.Close()
	os.Remove(spool.Name())
	if _, err = io.Copy(spool, content); err == nil {
		_, err = spool.Seek(0, io.SeekStart)
	}
	if err != nil {
		fmt.Fprintln(app.Err, "qmail-queue:", err)
		return inject.ExitRead
	}
	env, err := inject.DecodeEnvelope(envelope)
	switch {
	case errors.Is(err, inject.ErrAddress):
		fmt.Fprintln(app.Err, "qmail-queue:", err)
		return inject.ExitTooLong
	case errors.Is(err, inject.ErrEnvelope):
		fmt.Fprintln(app.Err, "qmail-queue:", err)
		return inject.ExitEnvelope
	case err != nil:
		fmt.Fprintln(app.Err, "qmail-queue:", err)
		return inject.ExitRead
	}
	inject.Inherit(&env, e.Get("INDIGO_ORIGIN"))
	env.Queue = e.Get("QUEUEDIR")
	if _, err := client.Submit(context.Background(), spool, inject.Request{Program: "qmail-queue", Envelope: env}); err != nil {
		fmt.Fprintln(app.Err, "qmail-queue:", err)
		return inject.ExitCode(err)
	}
	return 0
}

// qmailMulti is qmail-multi: the message goes through the filter FILTERARGS, then to the queue. The filter's exit code 2 throws
// the message away, 100 refuses it (wiki 509-540).
func (app *App) qmailMulti([]string) int {
	e := settings.FromEnvironment()
	filter := e.Get("FILTERARGS")
	if filter == "" {
		return app.queueFrom(app.In)
	}
	var out bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", filter)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = app.In, &out, app.Err
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return app.queueFrom(&out)
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() == 100:
		return inject.ExitRefused
	}
	fmt.Fprintln(app.Err, "qmail-multi:", err)
	return inject.ExitTemporary
}

// qmailNullqueue reads the message and the envelope and keeps neither.
func (app *App) qmailNullqueue([]string) int {
	if _, err := io.Copy(io.Discard, app.In); err != nil {
		return inject.ExitRead
	}
	if r, ok := app.Out.(io.Reader); ok {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return inject.ExitRead
		}
	}
	return 0
}

// writer finds out who writes: from the environment as qmail-inject does, else the process's user.
func writer(e settings.Environment, n compose.Names) (who, sender addr.Address, name string) {
	first := func(names ...string) string {
		for _, v := range names {
			if s := e.Get(v); s != "" {
				return s
			}
		}
		return ""
	}
	login := first("QMAILUSER", "MAILUSER", "USER", "LOGNAME")
	if u, err := user.Current(); err == nil {
		login = cmp.Or(login, u.Username)
		full, _, _ := strings.Cut(u.Name, ",")
		name = full
	}
	name = cmp.Or(first("QMAILNAME", "MAILNAME", "NAME"), name)
	login = cmp.Or(login, "anonymous")
	n.DefaultHost = cmp.Or(e.Get("QMAILDEFAULTHOST"), n.DefaultHost)
	local, domain := splitAddress(login)
	who = n.Complete(local, cmp.Or(domain, first("QMAILHOST", "MAILHOST")))
	sender = who
	if s := e.Get("QMAILSUSER"); s != "" {
		sender.Local = s
	}
	if s := e.Get("QMAILSHOST"); s != "" {
		sender = n.Complete(sender.Local, s)
	}
	return who, sender, name
}

func splitAddress(s string) (local, domain string) {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// injection is what qmail-inject and sendmail are told by their arguments.
type injection struct {
	program    string
	recipients compose.Recipients
	arguments  []string
	// from is the sender of -f, nil without it.
	from *string
	name string
	// printOnly is -n of qmail-inject.
	printOnly        bool
	body, ret, envid string
	notify           string
}

// maxComposed bounds a message whose header is completed: it is held in memory.
const maxComposed = 256 << 20

// send completes a message and queues it.
func (app *App) send(ctx context.Context, in io.Reader, i injection) error {
	e, client, err := app.local(true)
	if err != nil {
		return err
	}
	n := service.Names(e.Data)
	n.DefaultHost = cmp.Or(e.Get("QMAILDEFAULTHOST"), n.DefaultHost)
	n.DefaultDomain = cmp.Or(e.Get("QMAILDEFAULTDOMAIN"), n.DefaultDomain)
	n.PlusDomain = cmp.Or(e.Get("QMAILPLUSDOMAIN"), n.PlusDomain)
	n.IDHost = cmp.Or(e.Get("QMAILIDHOST"), n.IDHost)
	who, sender, name := writer(e, n)
	raw, err := io.ReadAll(io.LimitReader(in, maxComposed+1))
	if err != nil {
		return fmt.Errorf("reading the message: %w", err)
	}
	if len(raw) > maxComposed {
		return usagef("the message is longer than %d bytes", maxComposed)
	}
	o := compose.Options{Names: n, Recipients: i.recipients, Arguments: i.arguments, User: who, Name: cmp.Or(i.name, name), Now: time.Now(), PID: os.Getpid()}
	flags := e.Get("QMAILINJECT")
	o.CommentName, o.DropFrom, o.DropMessageID = strings.Contains(flags, "c"), strings.Contains(flags, "f"), strings.Contains(flags, "i")
	o.ReturnPathSender, o.VERPEach, o.VERP = strings.Contains(flags, "s"), strings.Contains(flags, "r"), strings.Contains(flags, "m")
	if sender != who {
		o.Sender, o.SenderSet = sender, true
	}
	if i.from != nil {
		o.SenderSet = true
		if o.Sender, err = parseSender(*i.from, n); err != nil {
			return usageError{err}
		}
	}
	if path := e.Get("QMAILMFTFILE"); path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("QMAILMFTFILE: %w", err)
		}
		o.Lists = strings.Fields(string(text))
	}
	c, err := compose.Compose(wire.AppendCRLF(nil, raw), o)
	if err != nil {
		return usageError{err}
	}
	content := io.MultiReader(bytes.NewReader(c.Header), strings.NewReader("\r\n"), bytes.NewReader(c.Body))
	if i.printOnly {
		lf := wire.NewLFWriter(app.Out)
		_, err := io.Copy(lf, content)
		return errors.Join(err, lf.Close())
	}
	env := queue.Envelope{Sender: c.Sender, Body: i.body, Return: i.ret, EnvID: i.envid, Queue: e.Get("QUEUEDIR")}
	for _, a := range c.Recipients {
		env.Recipients = append(env.Recipients, queue.Recipient{Address: a, Notify: i.notify})
		env.UTF8 = env.UTF8 || strings.ContainsFunc(a.String(), func(r rune) bool { return r >= 0x80 })
	}
	if program := e.Get("QMAILQUEUE"); program != "" {
		if known, discard := inject.Known(program); discard {
			return nil
		} else if !known {
			return app.sendThrough(ctx, e, program, content, env)
		}
	}
	_, err = client.Submit(ctx, content, inject.Request{Program: i.program, Envelope: env})
	return err
}

// sendThrough gives a message to the program of QMAILQUEUE.
func (app *App) sendThrough(ctx context.Context, e settings.Environment, line string, content io.Reader, env queue.Envelope) error {
	// The program is the user's own, and runs as he: it gets his environment.
	p := &inject.Program{Line: line, Data: e.Data, Environment: e.All()}
	s, err := p.Begin(ctx, 0)
	if err != nil {
		return err
	}
	if _, err := io.Copy(s, content); err != nil {
		s.Abort()
		return err
	}
	return s.Commit(ctx, env)
}

// parseSender reads the operand of -f: "" and "<>" stand for the null sender.
func parseSender(s string, n compose.Names) (addr.Address, error) {
	s = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(s), "<"), ">")
	if s == "" {
		return addr.Address{}, nil
	}
	list, ok := message.ParseUnqualified(s)
	if !ok || len(list) != 1 {
		return addr.Address{}, fmt.Errorf("sender %q is no address", s)
	}
	return addr.Parse(n.Complete(list[0].Local, list[0].Domain).String())
}

// qmailInject is qmail-inject.
func (app *App) qmailInject(ctx context.Context, args []string) error {
	options, operands, err := parseOldOptions(args, "aAhHnf:F:")
	if err != nil {
		return usageError{err}
	}
	i := injection{program: "qmail-inject", arguments: operands, name: options['F']}
	for letter, r := range map[byte]compose.Recipients{'a': compose.ArgumentsOnly, 'A': compose.ArgumentsElseHeader, 'h': compose.HeaderOnly, 'H': compose.Both} {
		if _, ok := options[letter]; ok {
			i.recipients = r
		}
	}
	if from, ok := options['f']; ok {
		i.from = &from
	}
	_, i.printOnly = options['n']
	return app.send(ctx, app.In, i)
}

// sendmail is what every program of a Unix host calls to send mail. A line with a single dot does not end the message, whether
// -i is given or not, as with qmail's: no program loses the rest of its message.
func (app *App) sendmail(ctx context.Context, args []string) error {
	i := injection{program: "sendmail", recipients: compose.ArgumentsOnly}
	mode := byte('m')
	var operands []string
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		if word == "--" {
			operands = append(operands, args...)
			break
		}
		if len(word) < 2 || word[0] != '-' {
			operands = append(operands, word)
			continue
		}
		letter, value := word[1], word[2:]
		if strings.IndexByte("fFrNRVBCdDXLpAOhM", letter) >= 0 && value == "" {
			if len(args) == 0 {
				return usagef("option -%c needs a value", letter)
			}
			value, args = args[0], args[1:]
		}
		switch letter {
		case 'f', 'r':
			i.from = &value
		case 'F':
			i.name = value
		case 't':
			i.recipients = compose.Both
		case 'b':
			mode = (value + "m")[0]
		case 'q':
			mode = 'q'
		case 'N':
			i.notify = strings.ToUpper(value)
			if !bounce.ValidNotify(i.notify) {
				return usagef("-N %q: never, or some of success, failure, delay", value)
			}
		case 'R':
			if i.ret = strings.ToUpper(value); i.ret != "FULL" && i.ret != "HDRS" {
				return usagef("-R %q: full or hdrs", value)
			}
		case 'V':
			if i.envid = bounce.Xtext(value); !bounce.ValidEnvID(i.envid) {
				return usagef("-V %q: 1 to 100 characters", value)
			}
		case 'B':
			if i.body = strings.ToUpper(value); i.body != "7BIT" && i.body != "8BITMIME" {
				return usagef("-B %q: 7bit or 8bitmime", value)
			}
		case 'i', 'o', 'e', 'v', 'm', 'n', 's', 'U', 'G', 'c', 'C', 'd', 'D', 'X', 'L', 'p', 'A', 'O', 'h', 'x', 'J', 'w', 'k':
			// Sendmail's own, without effect here as with qmail's.
		default:
			return usagef("unknown option -%c", letter)
		}
	}
	switch mode {
	case 'm':
		i.arguments = operands
		return app.send(ctx, app.In, i)
	case 'p':
		return app.withQueue(ctx, settings.FromEnvironment().Data, func(q service.QueueTools) error { return app.qread(ctx, q, nil) })
	case 'q':
		return app.withQueue(ctx, settings.FromEnvironment().Data, func(q service.QueueTools) error {
			_, err := q.Do(ctx, service.Work{Action: queue.RetryNow}, queue.Filter{}, false, nil)
			return err
		})
	case 's':
		return app.smtpOnStandardInput(ctx)
	case 'i':
		// newaliases: aliases lie in the directory, and need no building.
		return nil
	case 'd':
		return usagef("-bd: a daemon is `indigo serve`")
	}
	return usagef("mode -b%c is unknown", mode)
}

// smtpOnStandardInput is sendmail -bs: an SMTP session with the process's user, who may send anywhere.
func (app *App) smtpOnStandardInput(ctx context.Context) error {
	e, client, err := app.local(true)
	if err != nil {
		return err
	}
	host := service.Names(e.Data).IDHost
	s := smtpd.New(smtpd.Config{Service: "sendmail", Hostname: host, Submission: true, Policy: anything{}, Queue: client.Submitter("sendmail"), Logger: slog.New(slog.DiscardHandler), PID: os.Getpid()})
	l := newOneConnection(&standardStreams{in: &crlfReader{r: app.In}, out: app.Out})
	go func() {
		<-l.closed
		s.Shutdown(ctx)
	}()
	return s.Serve(ctx, l)
}

// anything is the policy for the process's own user.
type anything struct{}

func accept() policy.Verdict { return policy.Verdict{Action: policy.Accept, Check: "local-process"} }

func (anything) Connect(context.Context, *policy.Session) policy.Verdict      { return accept() }
func (anything) Helo(context.Context, *policy.Session, string) policy.Verdict { return accept() }
func (anything) AuthAllowed(context.Context, *policy.Session) policy.Verdict  { return accept() }
func (anything) Mail(context.Context, *policy.Session, addr.Address, int64) policy.Verdict {
	return accept()
}
func (anything) Rcpt(context.Context, *policy.Session, addr.Address, addr.Address, int) policy.Verdict {
	return accept()
}
func (anything) Data(context.Context, *policy.Session, addr.Address, []addr.Address) policy.Verdict {
	return accept()
}
func (anything) EndOfData(context.Context, *policy.Session, addr.Address, []addr.Address, []byte, int64) policy.Verdict {
	return accept()
}

// crlfReader makes each LF without a CR before it a CRLF: programs of the host write both.
type crlfReader struct {
	r       io.Reader
	cr      bool
	pending []byte
}

func (c *crlfReader) Read(p []byte) (int, error) {
	if len(c.pending) == 0 {
		var b [4096]byte
		n, err := c.r.Read(b[:])
		for _, x := range b[:n] {
			if x == '\n' && !c.cr {
				c.pending = append(c.pending, '\r')
			}
			c.pending = append(c.pending, x)
			c.cr = x == '\r'
		}
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, c.pending)
	c.pending = c.pending[n:]
	return n, nil
}

// standardStreams is a connection made of standard input and output.
type standardStreams struct {
	in    io.Reader
	out   io.Writer
	once  sync.Once
	ended chan struct{}
}

func (c *standardStreams) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *standardStreams) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *standardStreams) Close() error {
	c.once.Do(func() { close(c.ended) })
	return nil
}
func (*standardStreams) LocalAddr() net.Addr              { return loopback() }
func (*standardStreams) RemoteAddr() net.Addr             { return loopback() }
func (*standardStreams) SetDeadline(time.Time) error      { return nil }
func (*standardStreams) SetReadDeadline(time.Time) error  { return nil }
func (*standardStreams) SetWriteDeadline(time.Time) error { return nil }

func loopback() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0))
}

// oneConnection is a listener with one connection; closed tells that it has ended.
type oneConnection struct {
	connections chan net.Conn
	closed      chan struct{}
	stop        chan struct{}
	once        sync.Once
}

func newOneConnection(c *standardStreams) *oneConnection {
	c.ended = make(chan struct{})
	l := &oneConnection{connections: make(chan net.Conn, 1), closed: c.ended, stop: make(chan struct{})}
	l.connections <- c
	return l
}

func (l *oneConnection) Accept() (net.Conn, error) {
	select {
	case c := <-l.connections:
		return c, nil
	case <-l.stop:
		return nil, net.ErrClosed
	}
}

func (l *oneConnection) Close() error {
	l.once.Do(func() { close(l.stop) })
	return nil
}

func (l *oneConnection) Addr() net.Addr { return loopback() }

// mailsubj sends standard input with a subject: mailsubj SUBJECT ADDRESS...
func (app *App) mailsubj(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return usagef("usage: mailsubj SUBJECT ADDRESS...")
	}
	if strings.ContainsAny(strings.Join(args, ""), "\r\n") {
		return usagef("a subject or address with a line end")
	}
	header := "Subject: " + args[0] + "\nTo: " + strings.Join(args[1:], ", ") + "\n\n"
	return app.send(ctx, io.MultiReader(strings.NewReader(header), app.In), injection{program: "mailsubj", recipients: compose.HeaderOnly})
}

// dated runs next with a Date field before the message, in local time.
func (app *App) dated(ctx context.Context, args []string, next func(context.Context, []string) error) error {
	in := app.In
	app.In = io.MultiReader(strings.NewReader("Date: "+message.Date822(time.Now())+"\n"), in)
	defer func() { app.In = in }()
	return next(ctx, args)
}

// predate puts a Date field before a message and gives it to a program: predate PROGRAM [ARGUMENT...].
func (app *App) predate(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usagef("usage: predate PROGRAM [ARGUMENT...]")
	}
	return app.dated(ctx, args, func(ctx context.Context, args []string) error {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = app.In, app.Out, app.Err
		return cmd.Run()
	})
}

// forward sends the message of a delivery on, unchanged: forward ADDRESS..., with NEWSENDER and DTLINE in the environment.
func (app *App) forward(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usagef("usage: forward ADDRESS...")
	}
	e, client, err := app.local(false)
	if err != nil {
		return err
	}
	n := service.Names(e.Data)
	sender, err := parseSender(cmp.Or(e.Get("NEWSENDER"), e.Get("SENDER")), n)
	if err != nil {
		return usageError{err}
	}
	env := queue.Envelope{Sender: sender}
	for _, arg := range args {
		to, err := parseSender(arg, n)
		if err == nil && to.IsNull() {
			err = errors.New("no address")
		}
		if err != nil {
			return usagef("recipient %q: %w", arg, err)
		}
		env.Recipients = append(env.Recipients, queue.Recipient{Address: to})
	}
	// The recipient of the delivery goes before the message, so that a circle of forwards is seen.
	trace := e.Get("DTLINE")
	if trace != "" {
		trace = strings.TrimRight(trace, "\r\n") + "\n"
	}
	_, err = client.Submit(ctx, io.MultiReader(strings.NewReader(trace), app.In), inject.Request{Program: "forward", Envelope: env})
	return err
}

// irmail is rmail, by which UUCP hands mail over: "From USER DATE remote from HOST" lines give the sender, the arguments the
// recipients.
func (app *App) irmail(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usagef("usage: irmail ADDRESS...")
	}
	raw, err := io.ReadAll(io.LimitReader(app.In, maxComposed))
	if err != nil {
		return err
	}
	// The first line is that of the nearest host, the last that of the host where the message began.
	sender := ""
	for {
		line, rest, ok := bytes.Cut(raw, []byte("\n"))
		words := strings.Fields(strings.TrimPrefix(string(line), ">"))
		if !ok || len(words) < 2 || words[0] != "From" {
			break
		}
		raw = rest
		sender = words[1]
		if i := strings.LastIndexByte(sender, '!'); i >= 0 {
			hosts := strings.Split(sender[:i], "!")
			sender = sender[i+1:] + "@" + hosts[len(hosts)-1]
		} else if n := len(words); n > 4 && words[n-3] == "remote" && words[n-2] == "from" && !strings.Contains(sender, "@") {
			sender += "@" + words[n-1]
		}
	}
	return app.send(ctx, bytes.NewReader(raw), injection{program: "irmail", recipients: compose.ArgumentsOnly, arguments: args, from: &sender})
}

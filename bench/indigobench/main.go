// Command indigobench runs Indigo and Debian's postfix in turn on loopback under postfix's own smtp-source and prints
// their speeds, the ratio, and the ceilings of the machine. See docs/performance.md for the last figures.
//
//	indigobench -dir DIR [-rounds 5] [-scale 1] [-only accept/20] [-profile FILE]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/indigomail/indigo/test/postfix"
)

func main() {
	dir := flag.String("dir", "", "folder on the file system to measure (see bench/fs.sh)")
	rounds := flag.Int("rounds", 5, "runs of each server and case; the median counts")
	scale := flag.Float64("scale", 1, "factor for the number of messages; with -logins the seconds of a run")
	only := flag.String("only", "", "regular expression for the cases to run")
	program := flag.String("program", "", "indigo program to measure; empty builds this tree's")
	profile := flag.String("profile", "", "write CPU and allocation profiles of the last Indigo run of each case to FILE.CASE.cpu and .allocs")
	waiting := flag.Int("million", 0, "instead of the table: what so many waiting messages cost (bytes each: -size)")
	fair := flag.Int("fair", 0, "instead of the table: what so many messages for a dead and a silent host do to a living one")
	logins := flag.Bool("logins", false, "instead of the table: logins a second, beside Debian's Dovecot")
	bytesEach := flag.Int("size", 4096, "bytes of each message's content")
	alone := flag.Bool("alone", false, "measure Indigo only")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, options{dir: *dir, rounds: *rounds, scale: *scale, only: *only, program: *program, profile: *profile, alone: *alone, waiting: *waiting, unfair: *fair, onlyLogins: *logins, size: *bytesEach}); err != nil {
		fmt.Fprintln(os.Stderr, "indigobench:", err)
		os.Exit(1)
	}
}

type options struct {
	dir        string
	rounds     int
	scale      float64
	only       string
	program    string
	profile    string
	alone      bool
	waiting    int
	unfair     int
	onlyLogins bool
	size       int
}

// kind is what a case measures.
type kind int

const (
	accept kind = iota
	deliver
	relay
	ceilingCommit
	ceilingDialogue
	ceilingFiles
)

// testCase is one row of the table.
type testCase struct {
	name     string
	kind     kind
	sessions int
	// many means many messages a connection (smtp-source -d), else one.
	many     bool
	messages int
	size     int
}

var cases = []testCase{
	{"accept/1", accept, 1, false, 2000, 0},
	{"accept/20", accept, 20, false, 8000, 0},
	{"accept/100", accept, 100, false, 8000, 0},
	{"accept-many/1", accept, 1, true, 3000, 0},
	{"accept-many/20", accept, 20, true, 12000, 0},
	{"accept-many/100", accept, 100, true, 12000, 0},
	{"maildir/20", deliver, 20, false, 6000, 0},
	{"maildir-many/20", deliver, 20, true, 6000, 0},
	{"relay/20", relay, 20, false, 6000, 0},
	{"relay-many/20", relay, 20, true, 6000, 0},
	{"ceiling-commit/1", ceilingCommit, 1, true, 5000, 0},
	{"ceiling-commit/20", ceilingCommit, 20, true, 40000, 0},
	{"ceiling-commit/100", ceilingCommit, 100, true, 100000, 0},
	{"ceiling-dialogue/1", ceilingDialogue, 1, false, 5000, 0},
	{"ceiling-dialogue/20", ceilingDialogue, 20, false, 10000, 0},
	{"ceiling-dialogue/100", ceilingDialogue, 100, false, 10000, 0},
	{"ceiling-dialogue-many/1", ceilingDialogue, 1, true, 10000, 0},
	{"ceiling-dialogue-many/20", ceilingDialogue, 20, true, 30000, 0},
	{"ceiling-dialogue-many/100", ceilingDialogue, 100, true, 30000, 0},
	{"ceiling-files/20", ceilingFiles, 20, true, 10000, 0},
}

func run(ctx context.Context, o options) error {
	if o.dir == "" {
		return fmt.Errorf("-dir is missing: a folder on the file system to measure, for example -dir $(bench/fs.sh)")
	}
	needed := map[string]string{"smtp-source": "postfix", "smtp-sink": "postfix"}
	if o.onlyLogins {
		needed = map[string]string{"dovecot": "dovecot-imapd"}
	}
	for name, debian := range needed {
		if _, err := exec.LookPath(name); err != nil && !(o.onlyLogins && o.alone) {
			return fmt.Errorf("%s is missing: install Debian's package %s", name, debian)
		}
	}
	wanted, err := regexp.Compile(o.only)
	if err != nil {
		return err
	}
	if missing := postfix.Missing(); missing != "" && !o.alone && o.waiting == 0 && o.unfair == 0 && !o.onlyLogins {
		return fmt.Errorf("%s; -alone measures Indigo only", missing)
	}
	dir, err := os.MkdirTemp(o.dir, "run")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	b := &bench{options: o, dir: dir}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	fmt.Println(machine(dir))
	if o.onlyLogins {
		fmt.Printf("median of %d runs each, in turn (Indigo, Dovecot, Indigo, ...)\n\n", o.rounds)
		return b.logins(ctx)
	}
	if o.waiting > 0 {
		fmt.Printf("messages of %d bytes\n\n", o.size)
		return b.million(ctx, o.waiting)
	}
	if o.unfair > 0 {
		fmt.Printf("messages of %d bytes, median of %d runs\n\n", o.size, o.rounds)
		return b.fair(ctx, o.unfair)
	}
	fmt.Printf("messages of %d bytes, median of %d runs each, in turn (Indigo, postfix, Indigo, ...)\n\n", o.size, o.rounds)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "case\tindigo /s\tspread\tpostfix /s\tspread\tratio\t")
	for _, c := range cases {
		if !wanted.MatchString(c.name) {
			continue
		}
		c.size = o.size
		c.messages = max(int(float64(c.messages)*o.scale), c.sessions)
		row, err := b.row(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Fprintln(table, row)
		fmt.Fprintln(os.Stderr, strings.ReplaceAll(row, "\t", "  "))
	}
	return table.Flush()
}

// row measures one case: both servers in turn, so that whatever changes meanwhile changes for both.
func (b *bench) row(ctx context.Context, c testCase) (string, error) {
	var ours, theirs []float64
	for round := range b.rounds {
		last := round == b.rounds-1
		switch c.kind {
		case ceilingCommit, ceilingDialogue, ceilingFiles:
			speed, err := b.ceiling(ctx, c)
			if err != nil {
				return "", err
			}
			ours = append(ours, speed)
			continue
		}
		speed, err := b.indigo(ctx, c, last)
		if err != nil {
			return "", fmt.Errorf("indigo: %w", err)
		}
		ours = append(ours, speed)
		if b.alone {
			continue
		}
		if speed, err = b.postfix(ctx, c); err != nil {
			return "", fmt.Errorf("postfix: %w", err)
		}
		theirs = append(theirs, speed)
	}
	row := fmt.Sprintf("%s\t%.0f\t%s\t", c.name, median(ours), spread(ours))
	if len(theirs) == 0 {
		return row + "\t\t\t", nil
	}
	return row + fmt.Sprintf("%.0f\t%s\t%.2f\t", median(theirs), spread(theirs), median(ours)/median(theirs)), nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func spread(v []float64) string { return fmt.Sprintf("%.0f-%.0f", slices.Min(v), slices.Max(v)) }

// machine describes what the figures were measured on.
func machine(dir string) string {
	text := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).Output()
		if err != nil {
			return "?"
		}
		return strings.TrimSpace(string(out))
	}
	cpu := "?"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(info); m != nil {
			cpu = string(m[1])
		}
	}
	memory := "?"
	if info, err := os.ReadFile("/proc/meminfo"); err == nil {
		memory = strings.Join(strings.Fields(strings.SplitN(string(info), "\n", 2)[0])[1:], " ")
	}
	return fmt.Sprintf("%s\n%s, %d cores, %s memory, Linux %s, file system %s, %s, postfix %s",
		time.Now().UTC().Format(time.DateOnly), cpu, runtime.NumCPU(), memory, text("uname", "-r"),
		text("findmnt", "-no", "FSTYPE", "-T", dir), runtime.Version(), text("postconf", "-dh", "mail_version"))
}

// fresh makes an empty folder.
func (b *bench) fresh(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

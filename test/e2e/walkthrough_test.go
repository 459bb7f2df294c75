package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/test/instance"
)

// TestWalkThroughs types what docs/walkthroughs.md and docs/mail-programs.md show, and wants what they show as answers. Their instance is mail.example.org, of
// example.org, with its data directory DATA; each chapter (##) begins with a new one. In what is shown "…" stands for any text, and a line "..." for any lines.
func TestWalkThroughs(t *testing.T) {
	need(t, "openssl", "base64", "swaks")
	for _, name := range []string{"walkthroughs", "mail-programs"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "docs", name+".md"))
		if err != nil {
			t.Fatal(err)
		}
		tried := 0
		for _, chapter := range strings.Split(string(text), "\n## ")[1:] {
			title, _, _ := strings.Cut(chapter, "\n")
			shown := typed(chapter)
			if len(shown) == 0 {
				continue
			}
			tried++
			t.Run(name+"/"+title, func(t *testing.T) {
				in := up(t, "--domain", "example.org", "--user", "alice")
				for _, step := range shown {
					step.try(t, in)
				}
			})
		}
		if tried == 0 {
			t.Errorf("docs/%s.md shows no commands", name)
		}
	}
}

// shownStep is a command that a document shows, with what it says comes of it.
type shownStep struct {
	command string
	answer  []string
	code    int
}

// typed gives the commands in the blocks of a text that are marked "console".
func typed(text string) []shownStep {
	var steps []shownStep
	inside, more := false, false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inside, more = line == "```console", false
		case !inside:
		case more:
			last := &steps[len(steps)-1]
			last.command += "\n" + line
			more = strings.HasSuffix(line, `\`)
		case strings.HasPrefix(line, "$ "):
			command := line[2:]
			steps, more = append(steps, shownStep{command: command}), strings.HasSuffix(command, `\`)
		case len(steps) > 0:
			last := &steps[len(steps)-1]
			if _, err := fmt.Sscanf(line, "(exit code %d)", &last.code); err != nil {
				last.answer = append(last.answer, line)
			}
		}
	}
	return steps
}

var (
	ports         = regexp.MustCompile(`mail\.example\.org:(\d+)`)
	dataDirectory = regexp.MustCompile(`([ >])DATA/`)
)

func (s shownStep) try(t *testing.T, in *instance.Instance) {
	t.Helper()
	line := ports.ReplaceAllStringFunc(dataDirectory.ReplaceAllString(s.command, "${1}"+in.Ready.Data+"/"), func(named string) string {
		_, port, _ := strings.Cut(named, ":")
		for service, address := range in.Ready.Services {
			if strings.HasSuffix(service, "."+port) {
				if !strings.Contains(s.command, "indigo auth test") && !strings.Contains(s.command, "indigo probe") {
					return address
				}
				// The certificate is this instance's own, and the name is not in DNS; neither does a free port say what talks there.
				return address + map[string]string{"993": " --protocol imap --tls", "110": " --protocol pop3"}[port] +
					" --tls-name mail.example.org --ca " + filepath.Join(in.Ready.Data, "certs", "servercert.pem")
			}
		}
		t.Fatalf("no service listens at %s", named)
		return ""
	})
	program, err := filepath.Abs(string(indigo))
	if err != nil {
		t.Fatal(err)
	}
	ctx := within(t, time.Minute)
	run := func() (out []byte, code int) {
		cmd := exec.CommandContext(ctx, "sh", "-c", line)
		cmd.Dir = filepath.Dir(in.Ready.Data)
		cmd.Env = append(os.Environ(), "INDIGO_DATA="+in.Ready.Data, "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "HOME="+cmd.Dir)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("%s: %v", line, err)
		}
		return out, cmd.ProcessState.ExitCode()
	}
	out, code := run()
	if strings.HasPrefix(s.command, "indigo turn list") {
		// A message that was taken a moment ago is delivered a moment later.
		for soon := time.Now().Add(10 * time.Second); !s.shows(out) && time.Now().Before(soon); {
			out, code = run()
		}
	}
	if code != s.code {
		t.Errorf("$ %s\nexit code %d, and %d is shown:\n%s", line, code, s.code, out)
	}
	if !s.shows(out) {
		t.Errorf("$ %s\nprints:\n%sand this is shown:\n%s", line, out, strings.Join(s.answer, "\n"))
	}
}

func (s shownStep) shows(out []byte) bool {
	pattern := `\A`
	for _, line := range s.answer {
		if line == "..." {
			pattern += `(?:.*\n)*?`
			continue
		}
		pattern += strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*") + `[ \t\r]*\n`
	}
	if len(s.answer) > 0 {
		pattern += `\z`
	}
	if !bytes.HasSuffix(out, []byte("\n")) {
		out = append(out, '\n')
	}
	return regexp.MustCompile(pattern).Match(out)
}

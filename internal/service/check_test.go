package service

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/indigomail/indigo/internal/cdb"
	"github.com/indigomail/indigo/internal/settings"
	"github.com/indigomail/indigo/internal/tlsx"
)

// TestNamedFiles: files that routes, remote_auth and rules name are read, and what is wrong with them has the place that names them.
func TestNamedFiles(t *testing.T) {
	data := t.TempDir()
	for file, text := range map[string]string{
		"control/me":            "mx.here.test\n",
		"control/remote_tls_ca": "certs/none0.pem\n",
		"control/smtproutes": "a.test:relay.test u p REMOTE_TLS_CA=certs/none1.pem\n# c\nb.test:relay.test REMOTE_TLS_CA=certs/bad.pem\n" +
			"c.test: CLIENTCERT=certs/none2.pem\nd.test:relay.test u token:control/none3\n",
		"control/remote_auth":                "x@y.test:u p CLIENTCERT=certs/bad.pem\n+z:u p REMOTE_TLS_CA=certs/none4.pem:\n",
		"control/rcpt.envrules":              "*@e.test:REMOTE_TLS_CA=certs/none5.pem\n*@f.test:SMTPROUTE=:relay.test REMOTE_TLS_CA=certs/none6.pem\n",
		"services/queue/variables/SMTPROUTE": ":relay.test CLIENTCERT=certs/none7.pem\n",
		"certs/bad.pem":                      "nonsense\n",
	} {
		writerInto(t, data)(file, text)
	}
	f := Check(data)
	var said []string
	for _, p := range slices.Concat(f.Refused, f.Wrong) {
		said = append(said, p.String())
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{
		"control/remote_tls_ca:1: REMOTE_TLS_CA: open " + data + "/certs/none0.pem: no such file",
		"control/smtproutes:1: REMOTE_TLS_CA: open " + data + "/certs/none1.pem: no such file",
		"control/smtproutes:3: REMOTE_TLS_CA: " + data + "/certs/bad.pem holds no certificate",
		"control/smtproutes:4: CLIENTCERT: " + data + "/certs/none2.pem",
		"control/smtproutes:5: REMOTE_AUTH: ",
		"control/remote_auth:1: CLIENTCERT: " + data + "/certs/bad.pem",
		"control/remote_auth:2: REMOTE_TLS_CA: open " + data + "/certs/none4.pem",
		"control/rcpt.envrules:1: REMOTE_TLS_CA: open " + data + "/certs/none5.pem",
		"control/rcpt.envrules:2: REMOTE_TLS_CA: open " + data + "/certs/none6.pem",
		"services/queue/variables/SMTPROUTE:1: CLIENTCERT: " + data + "/certs/none7.pem",
	} {
		if strings.Count("\n"+all, "\n"+want) != 1 {
			t.Errorf("not said once: %s", want)
		}
	}
	if t.Failed() {
		t.Log(all)
	}
}

// TestCredentialDatabase: remote_auth.cdb is read to its end, and compared with the text beside it; no password is shown.
func TestCredentialDatabase(t *testing.T) {
	data := t.TempDir()
	write := writerInto(t, data)
	text, database := "control/remote_auth", filepath.Join(data, "control/remote_auth.cdb")
	write("control/me", "mx.here.test\n")
	write("certs/bad.pem", "nonsense\n")
	for _, tc := range []struct {
		name, text string
		// records are key and value by turns.
		records []string
		spoil   func([]byte)
		mode    os.FileMode
		older   bool
		want    []string
	}{
		{name: "as the text", text: "# c\n=a@y.test:u sEcret:\n+b:u sEcret HELOHOST=x.test:\n.\n", records: []string{"!a@y.test\x00", "u sEcret", "!b", "u sEcret HELOHOST=x.test", "", "b"}},
		{name: "no text", records: []string{"!a@y.test\x00", "u sEcret", "", ""}},
		{name: "text of its own", text: "relay.test:u sEcret\n", records: []string{}},
		{name: "older", text: "=a@y.test:u sEcret:\n.\n", records: []string{"!a@y.test\x00", "u sEcret"}, older: true,
			want: []string{"warning control/remote_auth:1: is newer than control/remote_auth.cdb, which is in force: make it again"}},
		{name: "another", text: "# c\n=a@y.test:u sEcret:\n+b:u sEcret:\n=c.d@y.test:u sEcret:\n.\n",
			records: []string{"!a@y.test\x00", "u sEcretToo", "!b", "u sEcret HELOHOST=x.test", "!c", "w sEcret", "!gone@y.test\x00", "u sEcret"},
			want: []string{
				`warning control/remote_auth:2: REMOTE_AUTH: control/remote_auth.cdb has another entry for "a@y.test", which is in force: make it again by ` + "`indigo cdb-database remote_auth`",
				`warning control/remote_auth:3: REMOTE_AUTH: control/remote_auth.cdb has another entry for "b*", which is in force`,
				`warning control/remote_auth:4: REMOTE_AUTH: control/remote_auth.cdb has another entry for "c.d@y.test", which is in force`,
				`warning control/remote_auth.cdb:1: REMOTE_AUTH: has entries that control/remote_auth has not, and they are in force: "c*", "gone@y.test"`,
			}},
		{name: "malformed", records: []string{"!a@y.test\x00", "sEcret", "!b", "u sEcret NOSETTING=x", "Relay.test", "u sEcret", "!UP\x00", "u sEcret"}, want: []string{
			`error control/remote_auth.cdb:1: REMOTE_AUTH: the entry of "a@y.test": not of the form key:user password`,
			`error control/remote_auth.cdb:1: REMOTE_AUTH: the entry of "b*": behind the password, which has no blanks, may stand`,
			"warning control/remote_auth.cdb:1: REMOTE_AUTH: 2 keys are of another form",
		}},
		{name: "files that are named", text: "=a@y.test:u sEcret CLIENTCERT=certs/bad.pem:\n.\n",
			records: []string{"!a@y.test\x00", "u sEcret CLIENTCERT=certs/bad.pem", "!b\x00", "u sEcret REMOTE_TLS_CA=certs/none.pem", "!c\x00", "u token:none"}, want: []string{
				"error control/remote_auth:1: CLIENTCERT: ",
				"error control/remote_auth.cdb:1: REMOTE_TLS_CA: open " + data + "/certs/none.pem",
				"error control/remote_auth.cdb:1: REMOTE_AUTH: ",
				`warning control/remote_auth.cdb:1: REMOTE_AUTH: has entries that control/remote_auth has not, and they are in force: "b", "c"`,
			}},
		{name: "damaged within", records: []string{"!a@y.test\x00", "u sEcret"}, spoil: func(b []byte) { b[2048+8+1] = 'x' }, want: []string{
			`error control/remote_auth.cdb:1: REMOTE_AUTH: the entry of "!x@y.test\x00" is not found by its key: make it again by`,
		}},
		{name: "damaged at its head", records: []string{"!a@y.test\x00", "u sEcret"}, spoil: func(b []byte) { b[3] = 0xff }, want: []string{
			"error control/remote_auth.cdb:1: " + database + ": not a constant database, or a damaged one: make it again by `indigo cdb-database remote_auth`",
		}},
		{name: "open to everybody", records: []string{"!a@y.test\x00", "u sEcret"}, mode: 0o644, want: []string{
			"error control/remote_auth.cdb:1: everybody can read or change the passwords in it: `chmod o= ",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			os.Remove(filepath.Join(data, text))
			if tc.text != "" {
				write(text, tc.text)
				if !tc.older {
					if err := os.Chtimes(filepath.Join(data, text), time.Time{}, time.Now().Add(-time.Hour)); err != nil {
						t.Fatal(err)
					}
				}
			}
			w, err := cdb.Create(database, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i+1 < len(tc.records); i += 2 {
				if err := w.Add([]byte(tc.records[i]), []byte(tc.records[i+1])); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			if tc.spoil != nil {
				b, err := os.ReadFile(database)
				if err != nil {
					t.Fatal(err)
				}
				tc.spoil(b)
				write("control/remote_auth.cdb", string(b))
			}
			if tc.mode != 0 {
				if err := os.Chmod(database, tc.mode); err != nil {
					t.Fatal(err)
				}
			}
			if tc.older {
				if err := os.Chtimes(database, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
			var said []string
			f := Check(data)
			for _, p := range slices.Concat(f.Refused, f.Wrong) {
				said = append(said, "error "+p.String())
			}
			for _, p := range f.Warnings {
				said = append(said, "warning "+p.String())
			}
			for _, want := range tc.want {
				if n := strings.Count("\n"+strings.Join(said, "\n"), "\n"+want); n != 1 {
					t.Errorf("%d times: %s", n, want)
				}
			}
			about := 0
			for _, line := range said {
				if strings.Contains(line, "remote_auth") {
					about++
				}
			}
			if about != len(tc.want) || strings.Contains(strings.Join(said, "\n"), "sEcret") {
				t.Errorf("said: %s", strings.Join(said, "\n"))
			}
		})
	}
}

// TestCertificateExpired: the server's own certificate that clients refuse is a warning, for each setting that names it.
func TestCertificateExpired(t *testing.T) {
	data := t.TempDir()
	write := writerInto(t, data)
	write("control/me", "mx.here.test\n")
	write("services/smtpd.25/variables/CERTDIR", "others\n")
	write("services/smtpd.26/variables/CERTDIR", "others\n")
	for file, made := range map[string]time.Time{"certs/servercert.pem": time.Now().AddDate(-50, 0, 0), "others/servercert.pem": time.Now().AddDate(1, 0, 0)} {
		write(file, "")
		if err := tlsx.SelfSigned(filepath.Join(data, file), []string{"mx.here.test"}, made); err != nil {
			t.Fatal(err)
		}
	}
	snapshot, err := settings.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	_, warnings := checkServices(data, snapshot)
	said := fmt.Sprint(warnings)
	for text, times := range map[string]int{
		"certs/servercert.pem: the certificate has expired at ": 1, "others/servercert.pem: the certificate is valid from ": 2,
	} {
		if got := strings.Count(said, text); got != times {
			t.Errorf("%q is said %d times, want %d: %s", text, got, times, said)
		}
	}
}

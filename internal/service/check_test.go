package service

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		name := filepath.Join(data, file)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wrong, _ := Check(data)
	var said []string
	for _, p := range wrong {
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

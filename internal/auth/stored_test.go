package auth

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

// The wiki's own forms (lines 2549, 2627, 2667 and 2700).
const (
	wikiCrypt = "$5$edYmuYDig/cqixyh$0HWa5eEOn2MH2TuLfy51YsRPkcuEFWbRPqGs6m3/uS0"
	wikiCRAM  = "{CRAM}pass3,$5$fbazeA/UC3RmSK15$V/GiMhfTuhRz1aUJv8QQvFt1qmFZrKgfw/4lK7d5KW0"
	wikiSCRAM = "{SCRAM-SHA-256}4096,HWvKDMG1R9hSSt/e,thk3p9gV604V9A2chgmW/ovPgucUtFRhHJgfeWi2pJ4=,IvIc99nIBYdKFqW+ZTz1Ioz5nIxWXJDegzPlkq41tic=,$5$7.Jwtq6QiQaLsguq$RXUJkrI5PUhtqGa4jKGbLPZaLmJiGdpqXhe68qtqyE/"
	wikiBoth  = "{SCRAM-SHA-256}4096,fIne4ExD9h3vufYZ,k9LD3a/7yk3u7o5tVPTRR4IYHqgd7khpwbKLzvNGnos=,LCuD6/yMc5cjmCMrBAj+es27icwu5eoI5Drqmh4P+mQ=:a8bac1a24c7aa2725630c9ab6813a631b366c79c6bc959bf344d3af8e685a375:supersecret,$5$j59A2PxyHYy5q5OE$wzif22gTmb3SPhbtQN6Z9jzvNB5JA54He8pN.midpu7"
)

func vectors(t testing.TB, file string, into any) {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestCryptForms(t *testing.T) {
	var file struct {
		Vectors []struct{ Method, Password, Stored string }
	}
	vectors(t, "crypt.json", &file)
	count := map[string]int{}
	for _, v := range file.Vectors {
		count[v.Method]++
		s, err := ParseStored(v.Stored, "")
		if v.Method == "DES" {
			// Thirteen letters are what the wiki's first method may have stored: never compared.
			if err != nil || !s.Bare || s.Usable() || s.matches(v.Password) || s.matches(v.Stored) || s.Secrets(true).Clear != "" {
				t.Errorf("%s: %+v %v", v.Stored, s, err)
			}
			continue
		}
		if err != nil || s.Method != v.Method {
			t.Errorf("%s: %s %v", v.Stored, s.Method, err)
			continue
		}
		if !s.matches(v.Password) || s.matches(v.Password+"x") && len(v.Password) < 72 || s.Clear != "" {
			t.Errorf("%s does not fit %q", v.Stored, v.Password)
		}
	}
	if len(count) != 6 {
		t.Error(count)
	}
}

func TestWikiForms(t *testing.T) {
	column := func(form string) [2]string { p, k := SplitStored(form); return [2]string{p, k} }
	for _, c := range []struct {
		name                   string
		passwd, kept, password string
		clear, mechanism       string
		forms                  string
	}{
		{"crypt", wikiCrypt, "", "supersecret", "", "", "SHA256"},
		{"cram whole", wikiCRAM, "", "pass3", "pass3", "", "SHA256 CLEAR"},
		{"cram in columns", column(wikiCRAM)[0], column(wikiCRAM)[1], "pass3", "pass3", "", "SHA256 CLEAR"},
		{"scram whole", wikiSCRAM, "", "supersecret", "", "SCRAM-SHA-256", "SHA256 SCRAM-SHA-256"},
		{"scram whole in scram", "", wikiSCRAM, "supersecret", "", "SCRAM-SHA-256", "SHA256 SCRAM-SHA-256"},
		{"scram in columns", column(wikiSCRAM)[0], column(wikiSCRAM)[1], "supersecret", "", "SCRAM-SHA-256", "SHA256 SCRAM-SHA-256"},
		{"both whole", wikiBoth, "", "supersecret", "supersecret", "SCRAM-SHA-256", "SHA256 SCRAM-SHA-256 CLEAR"},
		{"both in columns", column(wikiBoth)[0], column(wikiBoth)[1], "supersecret", "supersecret", "SCRAM-SHA-256", "SHA256 SCRAM-SHA-256 CLEAR"},
		// Dovecot's, which has no hash; {CRAM} without one; a password with commas in it.
		{"keys only", column(wikiSCRAM)[1], "", "supersecret", "", "SCRAM-SHA-256", "SCRAM-SHA-256"},
		{"clear only", "{CRAM}pass3", "", "pass3", "pass3", "", "CLEAR"},
		{"commas", "{CRAM}a,$b,c," + wikiCrypt, "", "supersecret", "a,$b,c", "", "SHA256 CLEAR"},
		{"commas in columns", wikiCrypt, "{CRAM}a,$5$x$y,", "supersecret", "a,$5$x$y,", "", "SHA256 CLEAR"},
	} {
		s, err := ParseStored(c.passwd, c.kept)
		if err != nil || !s.matches(c.password) || s.matches("another") || s.matches(c.passwd) || s.Clear != c.clear || s.Bare || strings.Join(s.Forms(), " ") != c.forms {
			t.Errorf("%s: %+v %v %v", c.name, s, s.Forms(), err)
		}
		secrets := s.Secrets(false)
		if secrets.Clear != c.clear || len(secrets.SCRAM) > 0 != (c.mechanism != "") {
			t.Errorf("%s: %+v", c.name, secrets)
		}
		if c.mechanism != "" {
			keys, salted, err := scramKeys(c.mechanism, c.password, secrets.SCRAM[c.mechanism].Salt, 4096)
			if err != nil || !slices.Equal(keys.StoredKey, secrets.SCRAM[c.mechanism].StoredKey) || !slices.Equal(keys.ServerKey, secrets.SCRAM[c.mechanism].ServerKey) {
				t.Errorf("%s: keys %v", c.name, err)
			}
			if strings.Contains(c.kept, ":") && !strings.Contains(c.kept, hex.EncodeToString(salted)) {
				t.Errorf("%s: salted password", c.name)
			}
		}
	}
	for _, form := range []string{wikiCRAM, wikiSCRAM, wikiBoth} {
		if p, k := SplitStored(form); k+","+p != form || len(p) > passwdWidth || len(k) > scramWidth {
			t.Errorf("%q %q", p, k)
		}
	}
}

func TestOtherForms(t *testing.T) {
	for _, c := range []struct{ passwd, password, method string }{
		// printf %s secret | openssl sha1 -binary | base64
		{"{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "secret", "SHA"},
		{"{sha256}K7gNU3sdo+OL0wNhqoVWhr3g6s1xYv72ol/pe/Unols=", "secret", "SHA256"},
		{"{SHA512-CRYPT}$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1", "secret", "SHA512"},
		{"{CRYPT}$1$saltsalt$9xy1btjgzLYfb7hivXtC//", "secret", "MD5"},
	} {
		s, err := ParseStored(c.passwd, "")
		if err != nil || s.Method != c.method || !s.matches(c.password) || s.matches("x") {
			t.Errorf("%s: %s %v", c.passwd, s.Method, err)
		}
	}
	salted := "{SSHA256}" + base64.StdEncoding.EncodeToString(append(mustHash("secret", "pepper"), "pepper"...))
	if s, err := ParseStored(salted, ""); err != nil || !s.matches("secret") || s.matches("secre") {
		t.Errorf("%s %v", salted, err)
	}
	for _, passwd := range []string{"", "!", "*", "!" + wikiCrypt} {
		if s, err := ParseStored(passwd, wikiSCRAM); passwd != "" && (err == nil || s.Usable() || s.Secrets(true).Clear != "" || len(s.SCRAM) > 0) {
			t.Errorf("%q: %+v %v", passwd, s, err)
		}
		if s, err := ParseStored(passwd, ""); err == nil || s.Usable() {
			t.Errorf("%q: %+v %v", passwd, s, err)
		}
	}
	s, err := ParseStored("supersecret", "")
	if err != nil || !s.Bare || s.Usable() || s.matches("supersecret") || s.Secrets(false).Clear != "" || s.Secrets(true).Clear != "supersecret" {
		t.Errorf("%+v %v", s, err)
	}
	// A malformed column scram leaves the hash.
	if s, err := ParseStored(wikiCrypt, "{SCRAM-SHA-256}rubbish"); err == nil || !s.matches("supersecret") {
		t.Error(err)
	}
	for _, bad := range []string{
		"$6$", "$6$salt$short", "$plaintext$secret", "$2x$05$abcdefghijklmnopqrstuu7nFISH/8YdwlXD3lw69A4iBUf6fvWAW", "$2b$31$abcdefghijklmnopqrstuu7nFISH/8YdwlXD3lw69A4iBUf6fvWAW",
		"$argon2id$v=19$m=9999999,t=2,p=1$c2FsdHNhbHRzYWx0$c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0", "$argon2id$v=19$m=19456,t=200,p=1$c2FsdHNhbHRzYWx0$c2FsdHNhbHRzYWx0c2FsdHNhbHRzYWx0",
		"$5$rounds=999999999$saltstringsaltst$ac6.fN7pMp8ZRWXXb5WRZEa9W6lumcqEO1pn6X9n85.", "{PLAIN}secret", "{NTLM}secret", "{SSHA}c2FsdA==", "{CRAM}", "{SCRAM-SHA-256}4096,x,y,z", "$y$jZZ$abcd$1234567890123456789012345678901234567890123",
	} {
		s, err := ParseStored(bad, "")
		if err == nil || s.Usable() {
			t.Errorf("%s: %+v", bad, s)
			continue
		}
		if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "saltst") {
			t.Errorf("%s: the error repeats it: %v", bad, err)
		}
	}
}

func TestForm(t *testing.T) {
	var file struct {
		Vectors []struct {
			Name, Mechanism, Password, Salt, Salted string
			Iterations                              int
			StoredKey                               string `json:"stored_key"`
			ServerKey                               string `json:"server_key"`
		}
	}
	vectors(t, "scram.json", &file)
	for _, v := range file.Vectors {
		salt, _ := base64.StdEncoding.DecodeString(v.Salt)
		keys, salted, err := scramKeys(v.Mechanism, v.Password, string(salt), v.Iterations)
		code := base64.StdEncoding.EncodeToString
		if err != nil || code(keys.StoredKey) != v.StoredKey || code(keys.ServerKey) != v.ServerKey || hex.EncodeToString(salted) != v.Salted {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
	salt, _ := base64.StdEncoding.DecodeString("HWvKDMG1R9hSSt/e")
	for _, c := range []struct {
		form  Form
		forms string
	}{
		{Form{}, "ARGON2ID"}, {Form{Hash: "SHA256"}, "SHA256"}, {Form{Hash: "SHA512"}, "SHA512"}, {Form{Hash: "MD5"}, "MD5"}, {Form{Hash: "BCRYPT"}, "BCRYPT"},
		{Form{KeepClear: true}, "SHA512 CLEAR"}, {Form{SCRAM: "SCRAM-SHA-1"}, "SHA512 SCRAM-SHA-1"}, {Form{SCRAM: "SCRAM-SHA-512", Hash: "ARGON2ID"}, "ARGON2ID SCRAM-SHA-512"},
		{Form{SCRAM: "SCRAM-SHA-256", Salt: salt, KeepClear: true}, "SHA512 SCRAM-SHA-256 CLEAR"},
	} {
		passwd, kept, err := c.form.Store("supersecret")
		if err != nil {
			t.Errorf("%+v: %v", c.form, err)
			continue
		}
		s, err := ParseStored(passwd, kept)
		if err != nil || strings.Join(s.Forms(), " ") != c.forms || !s.matches("supersecret") || s.matches("x") || c.form.weaker(s) {
			t.Errorf("%+v: %s %s: %v %v", c.form, passwd, kept, s.Forms(), err)
		}
		if c.form.Salt != nil && !strings.HasPrefix(kept, "{SCRAM-SHA-256}4096,HWvKDMG1R9hSSt/e,thk3p9gV604V9A2chgmW/ovPgucUtFRhHJgfeWi2pJ4=,") {
			t.Error(kept)
		}
	}
	for _, f := range []Form{
		{Salt: salt}, {Iterations: 5000}, {SCRAM: "SCRAM-SHA-256", Iterations: 100}, {SCRAM: "SCRAM-MD5"}, {Hash: "DES"}, {SCRAM: "SCRAM-SHA-256", Salt: []byte("x")},
		{SCRAM: "SCRAM-SHA-512", KeepClear: true},
	} {
		if passwd, kept, err := f.Store("supersecret"); err == nil {
			t.Errorf("%+v: %s %s", f, passwd, kept)
		}
	}
	if _, _, err := (Form{Hash: "BCRYPT"}).Store(strings.Repeat("x", 73)); err == nil {
		t.Error("bcrypt of 73 bytes")
	}
	if got, err := Crypt("SHA256", "supersecret", "edYmuYDig/cqixyh", CryptRounds); err != nil || got != wikiCrypt {
		t.Error(got, err)
	}
	for _, c := range []struct {
		passwd string
		want   Form
		weaker bool
	}{
		{wikiCrypt, Form{}, true}, {wikiCrypt, Form{Hash: "SHA256"}, true}, {"$1$saltsalt$9xy1btjgzLYfb7hivXtC//", Form{Hash: "SHA256"}, true},
		{wikiSCRAM, Form{SCRAM: "SCRAM-SHA-1"}, true}, {"$2b$12$abcdefghijklmnopqrstuu7nFISH/8YdwlXD3lw69A4iBUf6fvWAW", Form{Hash: "SHA512"}, false},
		{"$y$j9T$abcd$1234567890123456789012345678901234567890123", Form{}, false}, {"$y$j9T$abcd$1234567890123456789012345678901234567890123", Form{SCRAM: "SCRAM-SHA-256"}, true},
	} {
		s, err := ParseStored(c.passwd, "")
		if err != nil || c.want.renewing(s).weaker(s) != c.weaker {
			t.Errorf("%s, %+v: %v", c.passwd, c.want, err)
		}
	}
	// What is kept is kept on.
	s, _ := ParseStored(wikiBoth, "")
	if f := (Form{}).renewing(s); f.SCRAM != "SCRAM-SHA-256" || !f.KeepClear || f.method() != "SHA512" {
		t.Errorf("%+v", f)
	}
}

func FuzzParseStored(f *testing.F) {
	for _, form := range []string{wikiCrypt, wikiCRAM, wikiSCRAM, wikiBoth, "{SSHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "$y$j9T$abcd$1234567890123456789012345678901234567890123", "{CRYPT}$1$saltsalt$9xy1btjgzLYfb7hivXtC//", "supersecret", "!"} {
		f.Add(form, "")
		passwd, kept := SplitStored(form)
		f.Add(passwd, kept)
		f.Add("", form)
	}
	f.Fuzz(func(t *testing.T, passwd, kept string) {
		s, err := ParseStored(passwd, kept)
		if err == nil && !s.Usable() && !s.Bare {
			t.Errorf("%q %q: nothing is usable and there is no error", passwd, kept)
		}
		if s.Bare && s.Secrets(false).Clear != "" {
			t.Error("a bare password is given unasked")
		}
		for name, keys := range s.SCRAM {
			if size := scramHashes()[name]().Size(); len(keys.StoredKey) != size || len(keys.ServerKey) != size || keys.Iters < 1 {
				t.Errorf("%q: %+v", kept, keys)
			}
		}
		if p, k := SplitStored(passwd); k != "" && p != "" && k+","+p != passwd {
			t.Errorf("%q became %q and %q", passwd, p, k)
		}
	})
}

func mustHash(password, salt string) []byte {
	sum := sha256.Sum256([]byte(password + salt))
	return sum[:]
}

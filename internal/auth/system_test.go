package auth

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSystem(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// All passwords are "secret", by openssl passwd -6 and by libxcrypt's crypt(3).
	const (
		sha512   = "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1"
		yescrypt = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$GmcwIgvdUC9qLWcKCi6gklUa1dM3ziD43YxYNURLKy0"
	)
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	s := System{
		Now: func() time.Time { return now },
		Passwd: write("passwd", `root:x:0:0:root:/root:/bin/bash
toor:x:0:0::/root:/bin/bash
ann:x:1001:1002:Ann:/home/ann:/bin/bash
yes:x:1003:1003::/home/yes:/usr/sbin/nologin
locked:x:1004:1004::/home/locked:/bin/sh
star:x:1005:1005::/home/star:/bin/sh
ended:x:1006:1006::/home/ended:/bin/sh
open:x:1007:1007::/home/open:/bin/sh
old:x:1008:1008::/home/old:/bin/sh
grace:x:1009:1009::/home/grace:/bin/sh
empty:x:1010:1010::/home/empty:/bin/sh
lonely:x:1011:1011::/home/lonely:/bin/sh
broken:x:1012
odd:x:many:1:::
`),
		Shadow: write("shadow", "root:"+sha512+":20000:0:99999:7:::\ntoor:"+sha512+":20000:0:99999:7:::\nann:"+sha512+":20000:0:99999:7:::\nyes:"+yescrypt+":20000:0:99999:7:::\n"+
			"locked:!"+sha512+":20000:0:99999:7:::\nstar:*:20000:0:99999:7:::\nended:"+sha512+":20000:0:99999:7::20454:\nopen:"+sha512+":20000:0:99999:7::20455:\n"+
			"old:"+sha512+":20000:0:30:7:10::\ngrace:"+sha512+":20420:0:30:7:10::\nempty::20000:0:99999:7:::\n"),
	}
	// 2026-01-01 is day 20454.
	for _, c := range []struct {
		name, password string
		in, fails      bool
	}{
		{"ann", "secret", true, false}, {"ann", "wrong", false, false}, {"ann", "", false, false}, {"yes", "secret", true, false}, {"yes", "secre", false, false},
		{"root", "secret", false, false}, {"toor", "secret", false, false}, {"locked", "secret", false, false}, {"star", "*", false, false}, {"star", "secret", false, false},
		{"ended", "secret", false, false}, {"open", "secret", true, false}, {"old", "secret", false, false}, {"grace", "secret", true, false},
		{"empty", "", false, false}, {"empty", "x", false, false}, {"lonely", "secret", false, false}, {"nobody", "secret", false, false},
		{"", "secret", false, false}, {"ann:x", "secret", false, false}, {"an", "secret", false, false}, {"Ann", "secret", false, false}, {"broken", "secret", false, true}, {"odd", "secret", false, true},
	} {
		user, refused, err := s.Check(c.name, c.password)
		if in := refused == nil && err == nil; in != c.in || (err != nil) != c.fails {
			t.Errorf("%q %q: %+v, refused %v, error %v", c.name, c.password, user, refused, err)
		}
		if !c.in && user != (SystemUser{}) && refused == nil {
			t.Errorf("%q: a user came with a refusal: %+v", c.name, user)
		}
	}
	if user, _, _ := s.Check("ann", "secret"); user != (SystemUser{"ann", "/home/ann", 1001, 1002}) {
		t.Errorf("ann is %+v", user)
	}
	s.Shadow = filepath.Join(dir, "nowhere")
	if _, refused, err := s.Check("ann", "secret"); refused != nil || err == nil {
		t.Errorf("without a shadow file: refused %v, error %v", refused, err)
	}
}

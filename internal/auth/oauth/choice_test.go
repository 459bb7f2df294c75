package oauth

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	fake "github.com/indigomail/indigo/test/issuer"
)

// TestForeign: who has nothing to do with a token is asked nothing about it, neither for keys nor by introspection.
func TestForeign(t *testing.T) {
	f := start(t)
	other := start(t)
	asks := f.config
	asks.Introspection, asks.ClientID, asks.Secret = f.URL+fake.Introspection, fake.Client, fake.Secret
	for _, c := range []Config{f.config, asks} {
		f.want(t, c, other.Token("ann@here.test", nil), "its issuer is")
		f.want(t, c, f.Token("ann@here.test", map[string]any{"iss": f.URL + "/"}), "its issuer is")
	}
	if n := f.Requests(fake.Discovery) + f.Requests(fake.Keys) + f.Requests(fake.Introspection); n != 0 {
		t.Errorf("%d questions", n)
	}
	// What does not say whose it is can only be asked about.
	f.want(t, asks, f.Token("ann@here.test", map[string]any{"iss": nil}), "not active")
}

// TestDomain: a name without a domain gets that of the configuration, one with a domain keeps it.
func TestDomain(t *testing.T) {
	f := start(t)
	c := f.config
	c.Claim, c.Domain = "sub", "here.test"
	f.want(t, c, f.Token("", map[string]any{"sub": "ann"}), "ann@here.test")
	f.want(t, c, f.Token("", map[string]any{"sub": "ann@there.test"}), "ann@there.test")
	f.want(t, c, f.Token("", map[string]any{"sub": ""}), "no claim")
}

// TestSlowIntrospection: an issuer that does not answer holds up nobody else's tokens.
func TestSlowIntrospection(t *testing.T) {
	f, slow := start(t), start(t)
	c := slow.config
	c.Introspection, c.ClientID, c.Secret = slow.URL+fake.Introspection, fake.Client, fake.Secret
	answer := make(chan struct{})
	arrived := make(chan struct{}, cap(f.Running))
	slow.Answer(func(http.ResponseWriter, *http.Request) bool { arrived <- struct{}{}; <-answer; return false })
	var wait sync.WaitGroup
	for range 3 * cap(f.Running) {
		token := slow.Opaque("bob@here.test", nil)
		wait.Go(func() { f.want(t, c, token, "bob@here.test") })
	}
	for range cap(f.Running) {
		<-arrived
	}
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		name, err := f.User(ctx, f.config, f.Token("ann@here.test", nil))
		cancel()
		if name != "ann@here.test" {
			t.Error(name, err)
			break
		}
	}
	select {
	case <-arrived:
		t.Error("more questions at once than there are places")
	default:
	}
	// The others wait for their turn.
	slow.Answer(nil)
	close(answer)
	wait.Wait()
}

// TestManyIssuers: the configuration that was used least lately makes room for a new one.
func TestManyIssuers(t *testing.T) {
	f := start(t)
	good := f.Token("ann@here.test", nil)
	f.want(t, f.config, good, "ann@here.test")
	c := f.config
	for n := range maxIssuers {
		f.pass(time.Millisecond)
		c.Skew = time.Duration(n) * time.Second
		if _, err := f.issuer(c); err != nil {
			t.Fatal(err)
		}
		if n%100 == 0 {
			f.pass(time.Millisecond)
			f.want(t, f.config, good, "ann@here.test")
		}
	}
	if len(f.all) != maxIssuers || f.all[f.config] == nil || f.Requests(fake.Keys) != 1 {
		t.Error(len(f.all), f.all[f.config], f.Requests(fake.Keys))
	}
}

// FuzzPeek reads arbitrary tokens: what is read chooses whom to ask, so that it must be of a JWT in its one form and say who issued it.
func FuzzPeek(f *testing.F) {
	for _, s := range []string{"", "..", "e30.e30.", "a.eyJpc3MiOiJodHRwczovL2kudGVzdCIsImVtYWlsIjoiYW5uQGhlcmUudGVzdCJ9.b", "a.bnVsbA.b", "a.W10.b", "a.eyJpc3MiOjF9.b", "a.eyJpc3MiOiIiLCJpc3MiOlsieCJdfQ.b", "{}.e30.e30.e30"} {
		f.Add(s)
	}
	c := Config{Issuer: "https://i.test", Audiences: "mail", Claim: "email", Timeout: time.Second}
	s := &Issuers{Now: time.Now, Running: make(chan struct{}, 1), Dial: nil}
	f.Fuzz(func(t *testing.T, token string) {
		said, ok := Peek(token)
		if !ok {
			if said.Issuer() != "" && len(token) > MaxToken {
				t.Fatal("too long, and read")
			}
			return
		}
		if issuer := said.Issuer(); issuer != "" && issuer != c.Issuer && "https://"+issuer != c.Issuer {
			// Without a Dial, a question would panic.
			var refused *Refusal
			if name, err := s.User(t.Context(), c, token); name != "" || !errors.As(err, &refused) {
				t.Fatalf("%q %v", name, err)
			}
		}
		_ = said.Text("email")
	})
}

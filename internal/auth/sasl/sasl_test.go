package sasl

import (
	"context"
	"errors"
	"testing"
)

func TestExchanges(t *testing.T) {
	wrong := errors.New("wrong")
	check := func(_ context.Context, user, password string) error {
		if user != "u" || password != "p" {
			return wrong
		}
		return nil
	}
	none := []byte(nil)
	for _, c := range []struct {
		name, mechanism string
		responses       [][]byte
		err             error
	}{
		{"plain", "PLAIN", [][]byte{[]byte("\x00u\x00p")}, nil},
		{"plain without initial response", "PLAIN", [][]byte{none, []byte("\x00u\x00p")}, nil},
		{"plain as itself", "PLAIN", [][]byte{[]byte("u\x00u\x00p")}, nil},
		{"plain as another", "PLAIN", [][]byte{[]byte("x\x00u\x00p")}, ErrMalformed},
		{"plain wrong", "PLAIN", [][]byte{[]byte("\x00u\x00q")}, wrong},
		{"plain short", "PLAIN", [][]byte{[]byte("u\x00p")}, ErrMalformed},
		{"plain empty", "PLAIN", [][]byte{{}}, ErrMalformed},
		{"login", "LOGIN", [][]byte{none, []byte("u"), []byte("p")}, nil},
		{"login with initial response", "LOGIN", [][]byte{[]byte("u"), []byte("p")}, nil},
		{"login wrong", "LOGIN", [][]byte{none, []byte("u"), []byte("x")}, wrong},
	} {
		s := New(c.mechanism, check)
		for i, r := range c.responses {
			_, done, err := s.Next(t.Context(), r)
			if last := i == len(c.responses)-1; done != last || last && !errors.Is(err, c.err) || !last && err != nil {
				t.Errorf("%s: step %d: done %v, %v", c.name, i, done, err)
			}
		}
	}
}

package oauth

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// answer is what came of a token, until then.
type answer struct {
	name  string
	err   error
	until time.Time
}

// introspected finds the user of a token, which has a place in running, by asking the issuer (RFC 7662), or by its last answer.
func (s *issuer) introspected(ctx context.Context, token string, running chan struct{}) (string, error) {
	key := sha256.Sum256([]byte(token))
	now := s.now()
	s.mu.Lock()
	known, ok := s.answers[key]
	s.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.name, known.err
	}
	said, err := s.askAside(ctx, token, running)
	if err != nil {
		return "", errors.New(clip(fmt.Sprintf("the issuer's introspection %s: %v", s.config.Introspection, err)))
	}
	a := answer{until: now.Add(s.config.Remember)}
	var limit time.Time
	if a.name, limit, a.err = s.config.introspect(said, now); !limit.IsZero() && limit.Before(a.until) {
		a.until = limit
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.answers) >= maxAnswers {
		for k, old := range s.answers {
			if !now.Before(old.until) {
				delete(s.answers, k)
			}
		}
		if len(s.answers) >= maxAnswers {
			clear(s.answers)
		}
	}
	s.answers[key] = a
	return a.name, a.err
}

// introspect judges an answer of RFC 7662 section 2.2; limit is zero where the token has no end.
func (c Config) introspect(said claims, now time.Time) (name string, limit time.Time, err error) {
	var active bool
	if json.Unmarshal(said["active"], &active) != nil || !active {
		return "", limit, refuse("the issuer says that it is not active")
	}
	if kind := said.text("token_type"); !slices.Contains([]string{"", "bearer", "access_token"}, strings.ToLower(kind)) {
		return "", limit, refuse("it is a %q, not a bearer's token", kind)
	}
	return c.judge(said, now)
}

// askAside asks about a token without its place in running.
func (s *issuer) askAside(ctx context.Context, token string, running chan struct{}) (claims, error) {
	<-running
	defer func() { running <- struct{}{} }()
	select {
	case s.questions <- struct{}{}:
		defer func() { <-s.questions }()
	case <-ctx.Done():
		return nil, fmt.Errorf("too many questions at once: %w", ctx.Err())
	}
	return s.ask(ctx, token)
}

// ask asks about a token. Its errors say nothing of the token.
func (s *issuer) ask(ctx context.Context, token string) (said claims, err error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.config.Introspection, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	// RFC 6749 section 2.3.1: both are encoded before.
	request.SetBasicAuth(url.QueryEscape(s.config.ClientID), url.QueryEscape(s.config.Secret))
	response, err := s.client.Load().Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized:
		return nil, errors.New(response.Status + ": it does not take OAUTH_INTROSPECTION_ID with its secret")
	default:
		return nil, errors.New(response.Status)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &said); err != nil || said == nil {
		return nil, errors.New("its answer is no JSON object")
	}
	return said, nil
}

package auth

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// maxWaiting bounds how many strangers' and how many known ones' passwords wait for a worker, turnTime how long each does.
	maxWaiting = 256
	turnTime   = 30 * time.Second
	// fairTurns is how many known ones go before a stranger who waits does.
	fairTurns = 8
)

var errManyWait = errors.New("too many passwords wait to be checked")

// turns shares the workers that compute hashes. Who logs in from where he did before goes first, and all but one of the workers are for
// everybody: a flood of strangers' passwords keeps neither known users waiting nor every CPU busy.
type turns struct {
	mu sync.Mutex
	// free counts workers; strangers counts those that strangers have, of at most most.
	free, strangers, most int
	// inRow counts known ones that went before a stranger who waited.
	inRow   int
	waiting [2]list.List // of *turn: known, strangers
}

type turn struct {
	stranger int
	granted  chan struct{}
}

func newTurns(workers int) *turns { return &turns{free: workers, most: max(1, workers-1)} }

// take waits for a worker, for at most turnTime. release gives it back.
func (t *turns) take(ctx context.Context, known bool) (release func(), err error) {
	one := &turn{granted: make(chan struct{})}
	if !known {
		one.stranger = 1
	}
	queue := &t.waiting[one.stranger]
	t.mu.Lock()
	if queue.Len() >= maxWaiting {
		t.mu.Unlock()
		return nil, errManyWait
	}
	place := queue.PushBack(one)
	t.grant()
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	select {
	case <-one.granted:
	case <-ctx.Done():
		t.mu.Lock()
		defer t.mu.Unlock()
		select {
		case <-one.granted:
			t.give(one)
		default:
			queue.Remove(place)
		}
		return nil, ctx.Err()
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.give(one)
	}, nil
}

func (t *turns) give(one *turn) {
	t.free++
	t.strangers -= one.stranger
	t.grant()
}

// grant lets those go on for whom there are workers.
func (t *turns) grant() {
	known, strangers := &t.waiting[0], &t.waiting[1]
	for t.free > 0 {
		stranger := strangers.Len() > 0 && t.strangers < t.most
		queue := known
		switch {
		case stranger && (known.Len() == 0 || t.inRow >= fairTurns):
			queue, t.inRow = strangers, 0
		case known.Len() == 0:
			return
		case stranger:
			t.inRow++
		}
		one := queue.Remove(queue.Front()).(*turn)
		t.free--
		t.strangers += one.stranger
		close(one.granted)
	}
}

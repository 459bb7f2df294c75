package service

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/indigomail/indigo/internal/settings"
)

// keepEvery is the time between two rounds of what an instance does to keep its house in order.
const keepEvery = 10 * time.Minute

// keeper runs those rounds.
type keeper struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// keepHouse begins with a round at once; end it before the directory closes.
func (h *House) keepHouse(ctx context.Context) *keeper {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	k := &keeper{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(k.done)
		tick := time.NewTicker(keepEvery)
		defer tick.Stop()
		for {
			h.keepRound(ctx)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return k
}

func (k *keeper) end() {
	k.cancel()
	<-k.done
}

// keepRound tells what has become wrong since it was last told, finishes removals and moves that were cut short, purges the trash, and deletes old lines of vlog and relay. What fails is
// logged, and done in the next round.
func (h *House) keepRound(ctx context.Context) {
	all := h.view("all")
	now := time.Now()
	failed := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			h.log.Warn("keeping the house in order: "+what, "error", err)
		}
	}
	h.unitsMu.Lock()
	stores := slices.Collect(maps.Values(h.stores))
	h.unitsMu.Unlock()
	for _, store := range stores {
		store.Look()
	}
	if snapshot := h.settings.Load(); snapshot != nil {
		h.logFindings(snapshot, true)
	}
	failed("finish removals and moves", h.directory.TidyUp(ctx))
	if days := settings.TrashDays.Get(all); days > 0 {
		gone, err := h.directory.PurgeTrash(ctx, now.AddDate(0, 0, -days))
		for _, t := range gone {
			h.log.Info("purged from the trash", "id", t.ID)
		}
		failed("purge the trash", err)
	}
	failed("where users logged in from", h.rememberLogins(ctx))
	if days := settings.VlogDays.Get(all); days > 0 {
		n, err := h.directory.ForgetChanges(ctx, now.AddDate(0, 0, -days))
		if n > 0 {
			h.log.Info("deleted old lines of who changed what", "count", n)
		}
		failed("delete old lines of who changed what", err)
	}
	if minutes := settings.RelayClearMinutes.Get(all); minutes > 0 {
		_, err := h.directory.ClearRelay(ctx, now.Add(-time.Duration(minutes)*time.Minute))
		failed("clear the table relay", err)
	}
}

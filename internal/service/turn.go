package service

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/indigomail/indigo/internal/turn"
)

// handleTurn answers for the mail that waits for its host.
func (h *House) handleTurn(mux *http.ServeMux) {
	mux.HandleFunc("POST /turn", func(w http.ResponseWriter, r *http.Request) {
		report, err := h.turn.Send(r.Context(), r.FormValue("dir"), r.FormValue("prefix"), r.FormValue("to"))
		reply(w, report, err)
	})
}

// Turn hands over what waits in a directory, an absolute path, to an address, host and port, and returns at the end; see turn.Station.Send.
func (c *Control) Turn(ctx context.Context, dir, prefix, to string) (r turn.Report, err error) {
	body, err := c.send(ctx, c.patient, http.MethodPost, "/turn", url.Values{"dir": {dir}, "prefix": {prefix}, "to": {to}})
	if err != nil {
		return r, err
	}
	defer body.Close()
	return r, json.NewDecoder(body).Decode(&r)
}

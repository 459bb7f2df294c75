package auth

import (
	"flag"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var timings = flag.Int("timings", 0, "how many wrong logins of each kind TestTimings measures; 0 skips it")

// TestTimings asks whether the time of a wrong password tells names: which users there are, or how their passwords are stored. For each
// kind of user it gives the chance that a login of it takes longer than one of nobody; half is no knowledge. It needs a machine that does
// nothing else.
func TestTimings(t *testing.T) {
	if *timings == 0 {
		t.Skip("asked for with -timings N; see docs/testing.md")
	}
	argon, err := HashPassword("secret")
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(Config{DefaultDomain: ofExample, Now: time.Now, Directory: users{
		"argon2id@d.example": argon,
		"sha512@d.example":   "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1",
		"sha256@d.example":   "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA", "md5@d.example": "$1$saltsalt$9xy1btjgzLYfb7hivXtC//",
		"odd@d.example": "$x$", "clear@d.example": "secret", "locked@d.example": "",
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	kinds := []string{"nobody", "argon2id", "sha512", "sha256", "md5", "odd", "clear", "locked"}
	took := map[string][]time.Duration{}
	for round := range *timings + 5 {
		rand.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		for _, kind := range kinds {
			began := time.Now()
			if _, err := v.Verify(t.Context(), Attempt{User: kind, Password: "wrong"}); err == nil {
				t.Fatal(kind)
			}
			// The first rounds find out how slow the slowest is.
			if round >= 5 {
				took[kind] = append(took[kind], time.Since(began))
			}
		}
	}
	for _, kind := range slices.Sorted(slices.Values(kinds)) {
		longer := 0.0
		for _, a := range took[kind] {
			for _, b := range took["nobody"] {
				if a > b {
					longer++
				} else if a == b {
					longer += 0.5
				}
			}
		}
		chance := longer / float64(*timings**timings)
		slices.Sort(took[kind])
		t.Logf("%-9s median %v, longer than nobody: %.3f", kind, took[kind][*timings/2], chance)
		// Of 300 logins of each, chance alone leaves this in one of a thousand runs.
		if *timings >= 300 && (chance < 0.42 || chance > 0.58) {
			t.Errorf("%s can be told from nobody: %.3f", kind, chance)
		}
	}
}

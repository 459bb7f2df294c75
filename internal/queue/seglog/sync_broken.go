//go:build brokensync

package seglog

const skipSync = true

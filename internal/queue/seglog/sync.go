//go:build !brokensync

package seglog

// skipSync is what the build tag brokensync changes: an engine that acknowledges without a sync, to show that the tests
// would see it.
const skipSync = false

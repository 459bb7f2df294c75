package auth

// recent is a map that forgets what was not asked for lately: it holds at most twice size entries. What keep says is important survives
// while it makes up at most half of them.
type recent[K comparable, V any] struct {
	size        int
	keep        func(V) bool
	now, before map[K]V
}

func newRecent[K comparable, V any](size int, keep func(V) bool) *recent[K, V] {
	return &recent[K, V]{size: size, keep: keep, now: map[K]V{}}
}

func (r *recent[K, V]) get(key K) (v V, ok bool) {
	if v, ok = r.now[key]; ok {
		return v, true
	}
	if v, ok = r.before[key]; ok {
		r.put(key, v)
	}
	return v, ok
}

func (r *recent[K, V]) put(key K, v V) {
	if _, there := r.now[key]; !there && len(r.now) >= r.size {
		old := r.before
		r.before, r.now = r.now, map[K]V{}
		for k, one := range old {
			if _, newer := r.before[k]; !newer && r.keep(one) && len(r.now) < r.size/2 {
				r.now[k] = one
			}
		}
	}
	r.now[key] = v
	delete(r.before, key)
}

func (r *recent[K, V]) remove(key K) {
	delete(r.now, key)
	delete(r.before, key)
}

func (r *recent[K, V]) len() int { return len(r.now) + len(r.before) }

// all calls each with every entry; each may remove it.
func (r *recent[K, V]) all(each func(K, V)) {
	for _, m := range []map[K]V{r.now, r.before} {
		for k, v := range m {
			each(k, v)
		}
	}
}

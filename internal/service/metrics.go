package service

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/indigomail/indigo/internal/trace"
)

// metrics counts what the trace is told of, and looks at the queue and the disk when it is asked.
type metrics struct {
	registry  *prometheus.Registry
	decisions *prometheus.CounterVec
	replies   *prometheus.CounterVec
	took      *prometheus.HistogramVec
	bytes     *prometheus.CounterVec
	auth      *prometheus.CounterVec
	delivered *prometheus.CounterVec
	dns       *prometheus.CounterVec
	dnsTook   prometheus.Histogram
}

// latencies are the buckets of all histograms, in seconds: from a cached decision to a slow remote host.
func latencies() []float64 {
	return []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 300}
}

func newMetrics(h *House) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		registry:  prometheus.NewRegistry(),
		decisions: counter("indigo_decisions_total", "Decisions of the services, by what was asked and what was answered.", "service", "kind", "verdict"),
		replies:   counter("indigo_replies_total", "Replies that told a decision, by their code.", "service", "kind", "code"),
		bytes:     counter("indigo_received_bytes_total", "Bytes of the messages that were taken in.", "service"),
		auth:      counter("indigo_auth_total", "Logins, by their result.", "service", "verdict"),
		delivered: counter("indigo_deliveries_total", "Deliveries, by channel and outcome.", "channel", "outcome"),
		dns:       counter("indigo_dns_questions_total", "Questions to name servers, by kind and result: cached, answered, failed.", "kind", "result"),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "indigo_seconds", Help: "How long messages, handshakes, logins, sessions and deliveries took.", Buckets: latencies(),
		}, []string{"kind"}),
		dnsTook: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "indigo_dns_seconds", Help: "How long name servers took to answer.", Buckets: latencies(),
		}),
	}
	m.registry.MustRegister(m.decisions, m.replies, m.took, m.bytes, m.auth, m.delivered, m.dns, m.dnsTook, &moment{h: h})
	return m
}

// counted is the trace, with everything counted that goes by.
type counted struct {
	trace.Recorder
	m *metrics
}

// recorder gives what stations and doors record to.
func (h *House) recorder() trace.Recorder { return counted{h.trace, h.metrics} }

// Record counts and records e.
func (c counted) Record(e trace.Event) {
	m := c.m
	switch e.Kind {
	case "delivery":
		// Service is the queue's channel, or else how a host fetched its mail.
		channel := "remote"
		if e.Service == "local" {
			channel = "local"
		}
		m.delivered.WithLabelValues(channel, e.Verdict).Inc()
	case "auth":
		m.auth.WithLabelValues(e.Service, e.Verdict).Inc()
	}
	if e.Service != "" && e.Verdict != "" {
		m.decisions.WithLabelValues(e.Service, e.Kind, e.Verdict).Inc()
		if len(e.Reply) > 3 && e.Reply[0] >= '2' && e.Reply[0] <= '5' {
			m.replies.WithLabelValues(e.Service, e.Kind, e.Reply[:3]).Inc()
		}
	}
	if e.Kind == "data" && e.Verdict == "accept" {
		m.bytes.WithLabelValues(e.Service).Add(float64(e.Bytes))
	}
	if e.Took > 0 {
		m.took.WithLabelValues(e.Kind).Observe(e.Took.Seconds())
	}
	c.Recorder.Record(e)
}

// observeDNS counts a question.
func (h *House) observeDNS(kind string, cached bool, took time.Duration, err error) {
	if h.metrics == nil {
		return
	}
	result := "answered"
	switch {
	case err != nil:
		result = "failed"
	case cached:
		result = "cached"
	}
	h.metrics.dns.WithLabelValues(kind, result).Inc()
	if !cached {
		h.metrics.dnsTook.Observe(took.Seconds())
	}
}

// moment is what is looked at when somebody asks.
type moment struct {
	h *House
	// mu guards the age of the oldest messages, which costs a walk through the queues, and is kept for a while.
	mu     sync.Mutex
	oldest map[string]time.Time
	at     time.Time
}

func description(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe says nothing: what there is depends on the services and queues.
func (*moment) Describe(chan<- *prometheus.Desc) {}

// Collect looks.
func (m *moment) Collect(out chan<- prometheus.Metric) {
	metric := func(kind prometheus.ValueType, name, help string, value float64, labels []string) {
		names, values := []string{}, []string{}
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		out <- prometheus.MustNewConstMetric(description(name, help, names...), kind, value, values...)
	}
	gauge := func(name, help string, value float64, labels ...string) {
		metric(prometheus.GaugeValue, name, help, value, labels)
	}
	count := func(name, help string, n uint64, labels ...string) {
		metric(prometheus.CounterValue, name, help, float64(n), labels)
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, s := range m.h.Services() {
		gauge("indigo_service_up", "1 while a service serves.", flag(s.Up), "service", s.Name)
		gauge("indigo_connections", "Connections that are open.", float64(s.Connections), "service", s.Name)
		gauge("indigo_service_restarts", "How often a service was started again.", float64(s.Restarts), "service", s.Name)
	}
	m.mu.Lock()
	const keep = 15 * time.Second
	if time.Since(m.at) > keep {
		m.oldest, m.at = m.h.queue.Oldest(), time.Now()
	}
	oldest := m.oldest
	m.mu.Unlock()
	for _, s := range m.h.queue.Stats() {
		gauge("indigo_queue_messages", "Messages in a queue.", float64(s.Messages), "queue", s.Queue)
		gauge("indigo_queue_recipients", "Recipients that wait in a queue.", float64(s.Recipients), "queue", s.Queue)
		gauge("indigo_queue_running", "Deliveries that run.", float64(s.LocalRunning), "queue", s.Queue, "channel", "local")
		gauge("indigo_queue_running", "Deliveries that run.", float64(s.RemoteRunning), "queue", s.Queue, "channel", "remote")
		gauge("indigo_queue_log_bytes", "Bytes of a queue's log on the disk.", float64(s.LogBytes), "queue", s.Queue)
		age := 0.0
		if t, ok := oldest[s.Queue]; ok {
			age = time.Since(t).Seconds()
		}
		gauge("indigo_queue_oldest_seconds", "Age of the oldest message of a queue; looked at every 15 seconds.", age, "queue", s.Queue)
	}
	var disk syscall.Statfs_t
	if syscall.Statfs(m.h.config.Data, &disk) == nil {
		gauge("indigo_disk_free_bytes", "Bytes that are free on the data directory's file system.", float64(disk.Bavail)*float64(disk.Bsize))
		gauge("indigo_disk_bytes", "Size of the data directory's file system.", float64(disk.Blocks)*float64(disk.Bsize))
	}
	cache := m.h.directory.CacheStats()
	for result, n := range map[string]uint64{"hit": cache.Hits - cache.Negative, "negative": cache.Negative, "miss": cache.Misses} {
		count("indigo_directory_cache_total", "Look-ups of the directory: answered from its cache, there as not existing, or by the database.", n, "result", result)
	}
	count("indigo_directory_cache_clearings_total", "How often the directory's cache forgot everything.", cache.Clearings)
	count("indigo_directory_cache_failures_total", "Looks at the database's version that got no answer.", cache.Failures)
	for kind, n := range map[string]int{"user": cache.Users, "domain": cache.Domains, "limits": cache.Limits, "missing": cache.Missing} {
		gauge("indigo_directory_cache_entries", "Answers that the directory's cache has now.", float64(n), "kind", kind)
	}
	gauge("indigo_directory_cache_stale", "1 while the database does not answer and what is cached goes on.", flag(cache.Stale))
	logins := m.h.guard.Stats()
	for result, n := range map[string]uint64{"failed": logins.Failed, "repeated": logins.Repeated, "refused": logins.Refused} {
		count("indigo_auth_failures_total", "Logins that failed, those of them that repeated a wrong password, and logins that were refused without a look because of failures before.", n, "result", result)
	}
	count("indigo_auth_locks_total", "How often an address or account was locked after failed logins.", logins.Locks)
	gauge("indigo_auth_delayed", "Replies to failed logins that are kept back now.", float64(logins.Delayed))
	for kind, n := range map[string]int{"client": logins.Clients, "account": logins.Accounts, "known": logins.Known} {
		gauge("indigo_auth_entries", "Addresses and accounts with failed logins, and pairs of both that are known, in memory.", float64(n), "kind", kind)
	}
	if shared := m.h.redis.Stats(); shared.Server != "" {
		gauge("indigo_auth_shared_up", "1 while the server answers by which hosts share failed logins.", flag(shared.Up))
		for result, n := range map[string]uint64{"answered": shared.Answered, "failed": shared.Failed, "skipped": shared.Skipped} {
			count("indigo_auth_shared_questions_total", "Questions to the server by which hosts share failed logins: answered, failed, and not asked because it was down or too many were under way.", n, "result", result)
		}
	}
	gauge("indigo_trace_dropped", "Events that the trace had no room for.", float64(m.h.trace.Dropped()))
	gauge("indigo_started_seconds", "When this process started, in seconds since 1970.", float64(m.h.started.Unix()))
}

// metricsDoor is the HTTP server of /metrics, /healthz and /readyz.
type metricsDoor struct{ server *http.Server }

func (h *House) newMetricsDoor() server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		// It answers, so it lives.
		w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		waiting := h.notReady()
		if len(waiting) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(map[string]any{"ready": len(waiting) == 0, "waiting_for": waiting})
	})
	return &metricsDoor{&http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 1 << 16}}
}

// notReady names the services that are wanted and do not serve, and what else keeps mail from being taken.
func (h *House) notReady() (waiting []string) {
	waiting = []string{}
	for _, s := range h.Services() {
		if s.Wanted && !s.Up {
			waiting = append(waiting, s.Name+": "+s.Failure)
		}
	}
	return waiting
}

// Serve answers until Shutdown.
func (d *metricsDoor) Serve(_ context.Context, l net.Listener) error {
	if err := d.server.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// Shutdown waits for answers under way until ctx ends.
func (d *metricsDoor) Shutdown(ctx context.Context) {
	if d.server.Shutdown(ctx) != nil {
		d.server.Close()
	}
}

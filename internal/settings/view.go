package settings

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/indigomail/indigo/internal/addr"
)

// Source is where a value came from.
type Source struct {
	// Layer is "default", "control file", "service variable", "defaultqueue", "tcp rule", "rule" or "route".
	Layer string
	// File is relative to the data directory, Line counts from 1; "" and 0 for a default.
	File string
	Line int
	// Value is the text in force.
	Value string
	// Unset is true when the layer unsets it.
	Unset bool
}

// String gives "control/databytes:1" or "default".
func (s Source) String() string {
	switch {
	case s.File == "":
		return s.Layer
	case s.Line == 0:
		return s.File
	}
	return s.File + ":" + strconv.Itoa(s.Line)
}

type value struct {
	parsed any
	source Source
}

// View is what one service sees, or one session, sender or recipient: the layers for it, later wins: default, control file,
// service variable, tcp rule, rules. It never changes.
type View struct {
	snapshot *Snapshot
	service  string
	// values are those of the service, by Setting.index.
	values []*value
	// layers are what values were taken from, the one that wins first.
	layers []values
	others []variable
	// over are the assignments of rules, the last of which wins.
	over []assignment
	// extra are variables of tcp rules that are no settings.
	extra []string
}

// find gives what some layer sets; nil when none does.
func (v *View) find(s *Setting) *value {
	for i := len(v.over) - 1; i >= 0; i-- {
		if v.over[i].setting == s {
			return &v.over[i].value
		}
	}
	if s.index < len(v.values) {
		return v.values[s.index]
	}
	return nil
}

// Source tells where the value of s came from. A nil view has defaults only.
func (v *View) Source(s *Setting) Source {
	if v != nil {
		if set := v.find(s); set != nil {
			return set.source
		}
	}
	return Source{Layer: "default", Value: s.Default}
}

// IsSet tells whether a layer sets s, and does not unset it.
func (v *View) IsSet(s *Setting) bool {
	if v == nil {
		return false
	}
	set := v.find(s)
	return set != nil && !set.source.Unset
}

// Service is the service's name.
func (v *View) Service() string {
	if v == nil {
		return ""
	}
	return v.service
}

// Environment gives what the layers set, as variables for a program: NAME=value. Lists and what is secret stay in their files.
func (v *View) Environment() (variables []string) {
	if v == nil {
		return nil
	}
	for _, s := range All() {
		if set := v.find(s); set != nil && !set.source.Unset && !s.inFile && !s.Secret {
			variables = append(variables, s.Name+"="+set.source.Value)
		}
	}
	for _, o := range v.others {
		if !o.unset {
			variables = append(variables, o.name+"="+o.text)
		}
	}
	return append(variables, v.extra...)
}

// Holder holds the snapshot in force; a reload swaps it.
type Holder struct{ atomic.Pointer[Snapshot] }

// ServiceName gives the name that Indigo has for a service by IndiMail's directory name: qmail-smtpd.25 is smtpd.25,
// qmail-imapd-ssl.993 is imapd.993, qmail-send.25 is queue, slowq-send is queue.slowq.
func ServiceName(directory string) string {
	name := strings.TrimPrefix(directory, "qmail-")
	if kind, port, ok := strings.Cut(name, "."); ok {
		name = strings.TrimSuffix(kind, "-ssl") + "." + port
	}
	switch {
	case name == "send" || strings.HasPrefix(name, "send."):
		return "queue"
	case name == "slowq-send":
		return "queue.slowq"
	}
	return name
}

// Directory gives the name of a service's directory under services/, and whether it is there: IndiMail's name when that is.
func (s *Snapshot) Directory(service string) (string, bool) {
	d, ok := s.directories[service]
	if !ok {
		return service, false
	}
	return d, true
}

// Services names the services that have a directory, in the order of the alphabet.
func (s *Snapshot) Services() (names []string) {
	for name := range s.directories {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

type viewName struct{ service, control string }

// View gives what service sees: its own variables, for "queue.slowq" then those of "queue", then control files. The same
// view comes back each time.
func (s *Snapshot) View(service string) *View {
	control := "control"
	for _, e := range s.variablesOf(service) {
		if set, ok := e.values[ControlDir.Setting]; ok {
			control = controlPath(set.parsed.(string))
			break
		}
	}
	return s.view(service, control)
}

// variablesOf gives the directories of variables of a service, the one that wins first.
func (s *Snapshot) variablesOf(service string) (all []*envdir) {
	kind, _, _ := strings.Cut(service, ".")
	if e := s.services[service]; e != nil {
		all = append(all, e)
	}
	if e := s.services[kind]; e != nil && kind != service {
		all = append(all, e)
	}
	if kind == "inject" && s.inject != nil {
		all = append(all, s.inject)
	}
	return all
}

// view gives what service sees with the control files of control.
func (s *Snapshot) view(service, control string) *View {
	name := viewName{service, control}
	if v, ok := s.views.Load(name); ok {
		return v.(*View)
	}
	v := &View{snapshot: s, service: service, values: make([]*value, len(All()))}
	var layers []values
	variables := s.variablesOf(service)
	for i, e := range variables {
		layers = append(layers, e.values)
		if i == 0 {
			layers = append(layers, s.queues[service])
		}
	}
	if variables == nil {
		layers = append(layers, s.queues[service])
	}
	layers = append(layers, s.control[control])
	v.layers = layers
	for i, setting := range All() {
		for _, layer := range layers {
			if set, ok := layer[setting]; ok {
				v.values[i] = &set
				break
			}
		}
	}
	for i := len(variables) - 1; i >= 0; i-- {
		for _, o := range variables[i].others {
			v.others = append(slices.DeleteFunc(v.others, func(old variable) bool { return old.name == o.name }), o)
		}
	}
	kept, _ := s.views.LoadOrStore(name, v)
	return kept.(*View)
}

// with gives v with assignments over it. One of CONTROLDIR changes where the control files are taken from.
func (v *View) with(assigns []assignment) *View {
	if len(assigns) == 0 {
		return v
	}
	over := &View{snapshot: v.snapshot, service: v.service, values: v.values, layers: v.layers, others: v.others, extra: v.extra}
	over.over = append(slices.Clip(v.over), assigns...)
	for _, a := range assigns {
		if a.setting == ControlDir.Setting {
			base := v.snapshot.view(v.service, controlPath(a.value.parsed.(string)))
			over.values, over.layers = base.values, base.layers
		}
	}
	return over
}

// ForClient gives the view for a client by the service's tcp rules, and what they say of it; host is its host name or "".
func (v *View) ForClient(ip netip.Addr, host string) (*View, TCPVerdict, error) {
	t := v.TCPRules()
	if t == nil {
		return v, TCPVerdict{}, nil
	}
	verdict, err := t.Lookup(ip, host)
	if err != nil || verdict.rule == nil {
		return v, verdict, err
	}
	over := v.with(verdict.rule.assigns)
	if len(verdict.rule.environment) > 0 {
		if over == v {
			over = &View{snapshot: v.snapshot, service: v.service, values: v.values, layers: v.layers, others: v.others, over: v.over}
		}
		over.extra = append(slices.Clip(v.extra), verdict.rule.environment...)
	}
	return over, verdict, nil
}

// TCPRules gives the rules for clients of v's service: the file that TCPRULES names, or the kind's own.
func (v *View) TCPRules() *TCPRules {
	if v == nil || v.snapshot == nil {
		return nil
	}
	name := TCPRulesFile.Get(v)
	if name == "" {
		kind, _, _ := strings.Cut(v.service, ".")
		name = defaultTCPRules[kind]
	}
	return v.snapshot.tcp[name]
}

// ForUser gives the view for an authenticated user by auth.envrules.
func (v *View) ForUser(user string) *View { return v.by(AuthRules, user) }

// ForSender gives the view for a sender by from.envrules.
func (v *View) ForSender(from addr.Address) *View { return v.by(FromRules, from.String()) }

// ForDomain gives the view for a recipient's domain by domainqueue.
func (v *View) ForDomain(domain string) *View { return v.by(DomainQueue, domain) }

// ForBounce gives the view for the address that gets a bounce by bounce.envrules.
func (v *View) ForBounce(to addr.Address) *View { return v.by(BounceRules, to.String()) }

// ForDelivery gives the view for one delivery: by fromd.envrules for its sender, then by rcpt.envrules for its recipient.
func (v *View) ForDelivery(from, to addr.Address) *View {
	return v.by(FromdRules, from.String()).by(RcptRules, to.String())
}

// by gives the view that the rules of a file make for subject.
func (v *View) by(file Key[*Rules], subject string) *View {
	if v == nil {
		return nil
	}
	r := file.Get(v)
	if r.Len() == 0 {
		return v
	}
	return v.with(r.lookup(subject, QRegex.Get(v)))
}

// RulesSet tells whether the rules of a file have something to say of subject about setting.
func (v *View) RulesSet(file Key[*Rules], subject string, setting *Setting) (text string, ok bool) {
	if v == nil {
		return "", false
	}
	for _, a := range file.Get(v).lookup(subject, QRegex.Get(v)) {
		if a.setting == setting {
			text, ok = a.value.source.Value, true
		}
	}
	return text, ok
}

// History gives every layer that sets s, the one that wins first, and the default last.
func (v *View) History(s *Setting) (all []Source) {
	if v != nil {
		for i := len(v.over) - 1; i >= 0; i-- {
			if v.over[i].setting == s {
				all = append(all, v.over[i].value.source)
			}
		}
		for _, layer := range v.layers {
			if set, ok := layer[s]; ok {
				all = append(all, set.source)
			}
		}
	}
	return append(all, Source{Layer: "default", Value: s.Default})
}

// Question names what settings depend on; every field but Service may be empty.
type Question struct {
	// Service is a service's name.
	Service string
	// IP and Host are the client's address and its host name.
	IP   netip.Addr
	Host string
	// User is the authenticated user, From the sender, To the recipient.
	User     string
	From, To *addr.Address
}

// Resolve gives the view for what q names, by the rules that the service obeys: a door's tcp rules, auth.envrules,
// from.envrules and domainqueue, a queue's fromd.envrules and rcpt.envrules; and what the tcp rules say of the client.
func (s *Snapshot) Resolve(q Question) (v *View, verdict TCPVerdict, err error) {
	v = s.View(q.Service)
	if kind, _, _ := strings.Cut(q.Service, "."); kind == "queue" {
		if q.From != nil {
			v = v.by(FromdRules, q.From.String())
		}
		if q.To != nil {
			v = v.by(RcptRules, q.To.String())
		}
		return v, verdict, nil
	}
	if q.IP.IsValid() {
		if v, verdict, err = v.ForClient(q.IP, q.Host); err != nil {
			return v, verdict, err
		}
	}
	if q.User != "" {
		v = v.ForUser(q.User)
		if _, domain, ok := strings.Cut(q.User, "@"); ok {
			v = v.ForTokens(domain)
		}
	}
	if q.From != nil {
		v = v.ForSender(*q.From)
	}
	if q.To != nil {
		v = v.ForDomain(q.To.Domain)
	}
	return v, verdict, nil
}

// List gives the list of a setting that is one; the error is for one that is not.
func (v *View) List(s *Setting) (*List, error) {
	var parsed any = s.parsedDefault
	if set := v.find(s); set != nil {
		parsed = set.parsed
	}
	if l, ok := parsed.(*List); ok {
		return l, nil
	}
	return nil, fmt.Errorf("%s is no list but %s", s.Name, s.Type)
}

// Held gives v with deliveries held, for the reason why.
func (v *View) Held(why string) *View {
	if v == nil {
		return nil
	}
	source := Source{Layer: why, Value: "1"}
	return v.with([]assignment{{HoldLocal.Setting, value{true, source}}, {HoldRemote.Setting, value{true, source}}})
}

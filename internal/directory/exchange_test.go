package directory

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func read(t *testing.T, text string, format Format) (records []Record, faults []string, last error) {
	t.Helper()
	for r, err := range ReadRecords(strings.NewReader(text), format) {
		var line *LineError
		switch {
		case errors.As(err, &line):
			faults = append(faults, line.Error())
		case err != nil:
			last = err
		default:
			records = append(records, r)
		}
	}
	return records, faults, last
}

func TestReadRecords(t *testing.T) {
	want := Record{Address: "a@example.org", Name: "A \"B\", C", Quota: "5S,10C", Flags: "NO_POP 0x400"}
	for _, c := range []struct {
		name, text string
		format     Format
		line       int
		faults     []string
		last       string
	}{
		{"csv", "Address, name ,QUOTA,flags\na@example.org,\"A \"\"B\"\", C\",\"5S,10C\",NO_POP 0x400\n", CSV, 2, nil, ""},
		{"csv of Windows", "\ufeffaddress,name,quota,flags\r\na@example.org,\"A \"\"B\"\", C\",\"5S,10C\",NO_POP 0x400\r\n", CSV, 2, nil, ""},
		{"csv goes on after bad lines", "address,name,quota,flags\nb@example.org\nc\"@example.org,x,,\na@example.org,\"A \"\"B\"\", C\",\"5S,10C\",NO_POP 0x400\nd,e,f,g,h\n", CSV, 4,
			[]string{"2: 1 fields, and the first line names 4 columns", "3: bare \" in non-quoted-field", "5: 5 fields, and the first line names 4 columns"}, ""},
		{"csv without a first line", "", CSV, 0, nil, "the first line must name the columns"},
		{"csv, wrong columns", "adress,name,name\n", CSV, 0, nil, "line 1: no column \"adress\""},
		{"jsonl", "\n{\"address\":\"a@example.org\",\"name\":\"A \\\"B\\\", C\",\"quota\":\"5S,10C\",\"flags\":\"NO_POP 0x400\"}\n", JSONLines, 2, nil, ""},
		{"jsonl goes on", "{\"adress\":\"x\"}\n[]\n{} {}\n{\"address\":\"a@example.org\",\"name\":\"A \\\"B\\\", C\",\"quota\":\"5S,10C\",\"flags\":\"NO_POP 0x400\"}\n{", JSONLines, 4,
			[]string{"1: json: unknown field \"adress\"", "2: json: cannot unmarshal", "3: more than one object", "5: unexpected EOF"}, ""},
		{"jsonl, too long", strings.Repeat("x", maxRecord+1), JSONLines, 0, nil, "line 1: bufio.Scanner: token too long"},
		{"neither", "", "xml", 0, nil, "there are csv and jsonl"},
	} {
		t.Run(c.name, func(t *testing.T) {
			records, faults, last := read(t, c.text, c.format)
			if c.line > 0 {
				want := want
				want.Line = c.line
				if len(records) != 1 || records[0] != want {
					t.Errorf("%+v, want %+v", records, want)
				}
			} else if len(records) > 0 {
				t.Errorf("%+v", records)
			}
			if len(faults) != len(c.faults) {
				t.Fatalf("%q, want %q", faults, c.faults)
			}
			for i := range faults {
				if !strings.HasPrefix(faults[i], c.faults[i]) {
					t.Errorf("%q, want %q", faults[i], c.faults[i])
				}
			}
			if (last != nil) != (c.last != "") || last != nil && !strings.Contains(last.Error(), c.last) {
				t.Errorf("%v, want %q", last, c.last)
			}
		})
	}
}

// FuzzReadRecords: what was read is written and read again as the same.
func FuzzReadRecords(f *testing.F) {
	f.Add("address,name\na@example.org,\"x\ny\"\n", true)
	f.Add("address,flags,quota,password,scram\na@b,NO_POP 0x400,NOQUOTA,$6$x,\n", true)
	f.Add("{\"address\":\"a@b\",\"cleartext\":\"\\u0000\"}\n{}\n", false)
	f.Fuzz(func(t *testing.T, text string, commas bool) {
		format := JSONLines
		if commas {
			format = CSV
		}
		records, _, _ := read(t, text, format)
		for i := range records {
			// Never raises more than an error.
			_, _ = records[i].User()
			if format == CSV {
				// An export has no clear text, and the CSV of the standard library reads \r\n as \n.
				records[i].Cleartext = ""
				for _, column := range recordColumns() {
					*records[i].field(column) = strings.ReplaceAll(*records[i].field(column), "\r", "")
				}
			}
			records[i].Line = 0
		}
		var out bytes.Buffer
		write, finish, err := WriteRecords(&out, format)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if err := write(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := finish(); err != nil {
			t.Fatal(err)
		}
		again, faults, err := read(t, out.String(), format)
		if err != nil || len(faults) > 0 || len(again) != len(records) {
			t.Fatalf("%d records, %d again, %q, %v: %q", len(records), len(again), faults, err, out.String())
		}
		for i := range again {
			again[i].Line = 0
			if again[i] != records[i] {
				t.Errorf("%+v became %+v", records[i], again[i])
			}
		}
	})
}

func TestRecordCheck(t *testing.T) {
	for _, c := range []struct {
		record Record
		fault  string
	}{
		{Record{Address: "a@example.org", Quota: "5S,10C", Flags: "no_pop 0x400"}, ""},
		{Record{Address: "a@example.org", Quota: "52428800"}, ""},
		{Record{Address: "a"}, "a"},
		{Record{Address: "../x@example.org"}, "dot"}, {Record{Address: "a/b@example.org"}, "user"},
		{Record{Address: "a@example.org", Quota: "much"}, "quota"},
		{Record{Address: "a@example.org", Quota: "123456789012345678S,123456789012345678C"}, "quota"},
		{Record{Address: "a@example.org", Flags: "NO_SUCH"}, "NO_SUCH"},
		{Record{Address: "a@example.org", Flags: "0xg"}, "0xg"},
		{Record{Address: "a@example.org", Flags: "0x100000000"}, "no number"},
		{Record{Address: "a@example.org", Name: strings.Repeat("x", 49)}, "48 bytes"},
		{Record{Address: "a@example.org", Name: "x\ny"}, "line end"},
		{Record{Address: "a@example.org", Password: strings.Repeat("x", 129)}, "128 bytes"},
		{Record{Address: "a@example.org", Password: "x", Cleartext: "y"}, "both"},
	} {
		_, err := c.record.User()
		if (err != nil) != (c.fault != "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%+v: %v, want %q", c.record, err, c.fault)
		}
	}
}

// TestAddUsers: all of a batch or none; who is there stays; what a user is goes out and comes in as the same.
func TestAddUsers(t *testing.T) { onEngines(t, testAddUsers) }

func testAddUsers(t *testing.T, dsn string) {
	s := openOn(t, dsn, t.TempDir(), time.Now)
	ctx := t.Context()
	if err := s.AddDomain(ctx, "example.org"); err != nil {
		t.Fatal(err)
	}
	one := NewUser{Name: "One", Domain: "example.org", Password: "$6$x", Scram: "s", Gecos: "The First", Quota: "5S,10C", Flags: NoPOP | 0x400}
	two := NewUser{Name: "two", Domain: "example.org"}
	if n, err := s.AddUsers(ctx, []NewUser{one, two}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := s.AddUsers(ctx, []NewUser{one, {Name: "three", Domain: "example.org"}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := s.AddUsers(ctx, []NewUser{{Name: "four", Domain: "example.org"}, {Name: "five/", Domain: "example.org"}}); n != 0 || err == nil {
		t.Fatal(n, err)
	}
	if n, err := s.AddUsers(ctx, []NewUser{{Name: "four", Domain: "example.org"}, {Name: "four", Domain: "nowhere.test"}}); n != 0 || !errors.Is(err, ErrNoDomain) {
		t.Fatal(n, err)
	}
	// The most users hold for a batch: all or none.
	if err := s.SetLimits(ctx, "example.org", func(l *Limits) error { l.MaxUsers = 4; return nil }); err != nil {
		t.Fatal(err)
	}
	if n, err := s.AddUsers(ctx, []NewUser{{Name: "four", Domain: "example.org"}, {Name: "five", Domain: "example.org"}}); n != 0 || err == nil {
		t.Fatal(n, err)
	}
	if n, err := s.AddUsers(ctx, []NewUser{{Name: "four", Domain: "example.org"}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	u, err := s.User(ctx, one.Address())
	if err != nil || !one.Same(u) || u.Quota != "5S,10C" {
		t.Fatalf("%+v %v", u, err)
	}
	if r := RecordOf(u); r.Flags != "NO_POP 0x400" {
		t.Errorf("%+v", r)
	} else if n, err := r.User(); err != nil || !n.Same(u) || n.Flags != one.Flags {
		t.Errorf("%+v %v", n, err)
	}
	if err := s.UpdateUser(ctx, NewUser{Name: "one", Domain: "example.org", Quota: "7S", Gecos: "Still the First"}); err != nil {
		t.Fatal(err)
	}
	if u, err = s.User(ctx, one.Address()); err != nil || u.Quota != "7S" || u.Gecos != "Still the First" || u.Password != "$6$x" || Flags(u.GID) != one.Flags {
		t.Errorf("%+v %v", u, err)
	}
	if one.Same(u) {
		t.Error("a changed user is the same")
	}
	if err := s.UpdateUser(ctx, NewUser{Name: "nobody", Domain: "example.org", Quota: "7S"}); !errors.Is(err, ErrNoUser) {
		t.Error(err)
	}
}

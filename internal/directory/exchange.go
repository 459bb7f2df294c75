package directory

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/indigomail/indigo/internal/addr"
)

// Format is how files of users are written.
type Format string

// CSV has a first line with the names of the columns; JSONLines has an object a line.
const (
	CSV       Format = "csv"
	JSONLines Format = "jsonl"
)

// Record is a user in a file. All but Address may be empty.
type Record struct {
	Address string `json:"address"`
	// Password is a stored form, Cleartext what is to be hashed; at most one of them is given.
	Password  string `json:"password,omitempty"`
	Cleartext string `json:"cleartext,omitempty"`
	Name      string `json:"name,omitempty"`
	Quota     string `json:"quota,omitempty"`
	// Flags are IndiMail's words with spaces between them; bits without a word are a number, 0x400. INACTIVE is who is marked so.
	Flags string `json:"flags,omitempty"`
	Scram string `json:"scram,omitempty"`
	// Line is where the record begins in its file.
	Line int `json:"-"`
}

func recordColumns() []string {
	return []string{"address", "password", "name", "quota", "flags", "scram", "cleartext"}
}

const inactiveWord = "INACTIVE"

// field gives the place of a column's value; nil for no such column.
func (r *Record) field(column string) *string {
	return map[string]*string{
		"address": &r.Address, "password": &r.Password, "name": &r.Name, "quota": &r.Quota, "flags": &r.Flags, "scram": &r.Scram, "cleartext": &r.Cleartext,
	}[column]
}

// RecordOf gives a user as a record.
func RecordOf(u User) Record {
	words := Flags(u.GID).Names()
	rest := Flags(u.GID)
	for _, one := range flagNames() {
		rest &^= one.Flag
	}
	if rest != 0 {
		words = append(words, "0x"+strconv.FormatInt(int64(rest), 16))
	}
	if u.Inactive {
		words = append(words, inactiveWord)
	}
	return Record{Address: u.Address().String(), Password: u.Password, Name: u.Gecos, Quota: u.Quota, Flags: strings.Join(words, " "), Scram: u.Scram}
}

// User gives what is to be added, without a cleartext password.
func (r Record) User() (NewUser, error) {
	a, err := addr.Parse(r.Address)
	if err != nil {
		return NewUser{}, err
	}
	n := NewUser{Name: a.Local, Domain: a.Domain, Password: r.Password, Scram: r.Scram, Gecos: r.Name, Quota: r.Quota}
	var faults []error
	for word := range strings.FieldsSeq(r.Flags) {
		if hex, ok := strings.CutPrefix(word, "0x"); ok {
			bits, err := strconv.ParseUint(hex, 16, 31)
			if err != nil {
				faults = append(faults, fmt.Errorf("flags: %q is no number", word))
			}
			n.Flags |= Flags(bits)
			continue
		}
		if strings.EqualFold(word, inactiveWord) {
			n.Inactive = true
			continue
		}
		flag, err := FlagsByName(word)
		if err != nil {
			faults = append(faults, err)
		}
		n.Flags |= flag
	}
	if r.Password != "" && r.Cleartext != "" {
		faults = append(faults, errors.New("both password and cleartext are given"))
	}
	if r.Scram != "" && r.Cleartext != "" {
		faults = append(faults, errors.New("both scram and cleartext are given; PASSWORD_SCRAM has keys made of a cleartext"))
	}
	return n, errors.Join(append(faults, n.Check())...)
}

// maxRecord bounds a line of JSON in bytes.
const maxRecord = 1 << 20

// LineError is what is wrong with a line of a file.
type LineError struct {
	Line int
	Err  error
}

func (e *LineError) Error() string {
	return fmt.Sprintf("%d: %s", e.Line, strings.ReplaceAll(e.Err.Error(), "\n", "; "))
}
func (e *LineError) Unwrap() error { return e.Err }

// ReadRecords gives the records of a file. After a LineError it goes on with the next line; another error is its last.
func ReadRecords(r io.Reader, format Format) iter.Seq2[Record, error] {
	switch format {
	case CSV:
		return func(yield func(Record, error) bool) { readCSV(r, yield) }
	case JSONLines:
		return func(yield func(Record, error) bool) { readJSONLines(r, yield) }
	}
	return func(yield func(Record, error) bool) {
		yield(Record{}, fmt.Errorf("no format %q; there are %s and %s", format, CSV, JSONLines))
	}
}

func readCSV(r io.Reader, yield func(Record, error) bool) {
	in := csv.NewReader(r)
	in.FieldsPerRecord, in.ReuseRecord = -1, true
	first, err := in.Read()
	if err != nil {
		yield(Record{}, fmt.Errorf("the first line must name the columns: %w", err))
		return
	}
	columns := slices.Clone(first)
	var faults []error
	for i := range columns {
		columns[i] = strings.ToLower(strings.TrimSpace(strings.TrimPrefix(columns[i], "\ufeff")))
		switch {
		case new(Record).field(columns[i]) == nil:
			faults = append(faults, fmt.Errorf("no column %q; there are %s", columns[i], strings.Join(recordColumns(), ", ")))
		case slices.Contains(columns[:i], columns[i]):
			faults = append(faults, fmt.Errorf("column %q is named twice", columns[i]))
		}
	}
	if !slices.Contains(columns, "address") {
		faults = append(faults, errors.New("the first line names no column address"))
	}
	if len(faults) > 0 {
		yield(Record{}, fmt.Errorf("line 1: %w", errors.Join(faults...)))
		return
	}
	for {
		fields, err := in.Read()
		var bad *csv.ParseError
		switch {
		case err == io.EOF:
			return
		case errors.As(err, &bad):
			if !yield(Record{}, &LineError{bad.StartLine, bad.Err}) {
				return
			}
			continue
		case err != nil:
			yield(Record{}, err)
			return
		}
		var record Record
		record.Line, _ = in.FieldPos(0)
		if len(fields) != len(columns) {
			err = &LineError{record.Line, fmt.Errorf("%d fields, and the first line names %d columns", len(fields), len(columns))}
		} else {
			for i, column := range columns {
				*record.field(column) = fields[i]
			}
		}
		if !yield(record, err) {
			return
		}
	}
}

func readJSONLines(r io.Reader, yield func(Record, error) bool) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxRecord)
	line := 0
	for lines.Scan() {
		line++
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			continue
		}
		record := Record{Line: line}
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.DisallowUnknownFields()
		err := decoder.Decode(&record)
		if err == nil && decoder.More() {
			err = errors.New("more than one object")
		}
		if err != nil {
			err = &LineError{line, err}
		}
		if !yield(record, err) {
			return
		}
	}
	if err := lines.Err(); err != nil {
		yield(Record{}, fmt.Errorf("line %d: %w", line+1, err))
	}
}

// WriteRecords gives a function that writes one record, and one that must be called at the end.
func WriteRecords(w io.Writer, format Format) (write func(Record) error, finish func() error, err error) {
	switch format {
	case CSV:
		out := csv.NewWriter(w)
		columns := slices.DeleteFunc(recordColumns(), func(c string) bool { return c == "cleartext" })
		return func(r Record) error {
				fields := make([]string, len(columns))
				for i, column := range columns {
					fields[i] = *r.field(column)
				}
				return out.Write(fields)
			}, func() error {
				out.Flush()
				return out.Error()
			}, out.Write(columns)
	case JSONLines:
		out := bufio.NewWriter(w)
		encoder := json.NewEncoder(out)
		return func(r Record) error { return encoder.Encode(r) }, out.Flush, nil
	}
	return nil, nil, fmt.Errorf("no format %q; there are %s and %s", format, CSV, JSONLines)
}

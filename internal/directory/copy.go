package directory

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Progress is told of each batch of a copy: the table, the rows that were copied of it, and how many it has.
type Progress func(table string, copied, of int64)

// copyBatch is how many rows one transaction of a copy has.
const copyBatch = 1000

// Copy copies every table of one database to another, of any engine, and compares counts and contents. The target's tables
// are made; they must be empty, so that a copy that was cut short is begun anew in an empty database. The source is read
// only; nothing may write to it meanwhile, or the comparison fails.
func Copy(ctx context.Context, from, to Config, progress Progress) error {
	source, err := parseDSN(from.DSN, from.Path)
	if err != nil {
		return err
	}
	target, err := parseDSN(to.DSN, to.Path)
	if err != nil {
		return err
	}
	if source.where == target.where {
		return fmt.Errorf("%s is the source and the target", source.where)
	}
	if err := Migrate(ctx, to); err != nil {
		return err
	}
	sourceWrite, sourceRead, err := source.open()
	if err != nil {
		return err
	}
	defer sourceWrite.Close()
	defer sourceRead.Close()
	targetWrite, targetRead, err := target.open()
	if err != nil {
		return err
	}
	defer targetWrite.Close()
	defer targetRead.Close()
	// Nothing is copied before all is known to be well.
	tables := map[string]bool{}
	for _, t := range Schema() {
		_, there, err := columnsOf(ctx, sourceRead, source.engine, t.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", source.where, err)
		}
		tables[t.Name] = there && t.Name != "indigo_change"
		var n int64
		if err := targetRead.QueryRowContext(ctx, "SELECT count(*) FROM "+target.engine.name(t.Name)).Scan(&n); err != nil {
			return fmt.Errorf("%s: %w", target.where, err)
		}
		if n > 0 && t.Name != "indigo_change" {
			return fmt.Errorf("%s: the table %s has %d rows; a copy needs an empty database: if a copy that was cut short left them, make the database anew, and copy again", target.where, t.Name, n)
		}
	}
	for _, t := range Schema() {
		if !tables[t.Name] {
			continue
		}
		if err := copyTable(ctx, t, sourceRead, source.engine, targetWrite, target.engine, progress); err != nil {
			return fmt.Errorf("table %s: %w", t.Name, err)
		}
		a, n, err := digest(ctx, sourceRead, source.engine, t)
		if err != nil {
			return fmt.Errorf("table %s of %s: %w", t.Name, source.where, err)
		}
		b, m, err := digest(ctx, targetRead, target.engine, t)
		if err != nil {
			return fmt.Errorf("table %s of %s: %w", t.Name, target.where, err)
		}
		if n != m || a != b {
			return fmt.Errorf("table %s: %d rows in %s and %d in %s are not the same; was something written meanwhile?", t.Name, n, source.where, m, target.where)
		}
	}
	return nil
}

// present gives the columns of t that the source has: IndiMail's older tables lack some.
func present(ctx context.Context, db *sql.DB, e engine, t Table) (all []Column, err error) {
	names, _, err := columnsOf(ctx, db, e, t.Name)
	for _, c := range t.Columns {
		for _, name := range names {
			if name == c.Name {
				all = append(all, c)
			}
		}
	}
	return all, err
}

func columnNames(columns []Column) (names []string) {
	for _, c := range columns {
		names = append(names, c.Name)
	}
	return names
}

func copyTable(ctx context.Context, t Table, from *sql.DB, fromEngine engine, to *sql.DB, toEngine engine, progress Progress) error {
	columns, err := present(ctx, from, fromEngine, t)
	if err != nil {
		return err
	}
	var total int64
	if err := from.QueryRowContext(ctx, "SELECT count(*) FROM "+fromEngine.name(t.Name)).Scan(&total); err != nil {
		return err
	}
	names := columnNames(columns)
	rows, err := from.QueryContext(ctx, "SELECT "+fromEngine.names(names)+" FROM "+fromEngine.name(t.Name))
	if err != nil {
		return err
	}
	defer rows.Close()
	marks := strings.TrimSuffix(strings.Repeat("?, ", len(names)), ", ")
	insert := toEngine.rebind("INSERT INTO " + toEngine.name(t.Name) + " (" + toEngine.names(names) + ") VALUES (" + marks + ")")
	var copied int64
	for more := true; more; {
		err := func() error {
			tx, err := to.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			statement, err := tx.PrepareContext(ctx, insert)
			if err != nil {
				return err
			}
			defer statement.Close()
			for range copyBatch {
				if more = rows.Next(); !more {
					break
				}
				values, err := scanRow(rows, columns)
				if err != nil {
					return err
				}
				if _, err := statement.ExecContext(ctx, values...); err != nil {
					return fmt.Errorf("row %d: %w", copied+1, err)
				}
				copied++
			}
			return tx.Commit()
		}()
		if err != nil {
			return err
		}
		if progress != nil {
			progress(t.Name, copied, total)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if toEngine == postgreSQL && len(t.Columns) > 0 && t.Columns[0].Kind == "serial" {
		// The counter goes on behind what was copied.
		_, err = to.ExecContext(ctx, fmt.Sprintf("SELECT setval(pg_get_serial_sequence('%s', '%s'), greatest((SELECT coalesce(max(%s), 1) FROM %s), 1))",
			t.Name, t.Columns[0].Name, toEngine.name(t.Columns[0].Name), toEngine.name(t.Name)))
	}
	return err
}

// scanRow reads a row with the types of its columns; NULL stays nil.
func scanRow(rows *sql.Rows, columns []Column) ([]any, error) {
	into := make([]any, len(columns))
	for i, c := range columns {
		switch c.Kind {
		case "stamp":
			into[i] = new(sql.NullTime)
		case "char":
			into[i] = new(sql.NullString)
		default:
			into[i] = new(sql.NullInt64)
		}
	}
	if err := rows.Scan(into...); err != nil {
		return nil, err
	}
	values := make([]any, len(columns))
	for i, one := range into {
		switch v := one.(type) {
		case *sql.NullTime:
			if v.Valid {
				values[i] = v.Time.UTC().Truncate(time.Second)
			}
		case *sql.NullString:
			if v.Valid {
				values[i] = v.String
			}
		case *sql.NullInt64:
			if v.Valid {
				values[i] = v.Int64
			}
		}
	}
	return values, nil
}

// digest gives a sum over the rows of a table that does not depend on their order, and their number.
func digest(ctx context.Context, db *sql.DB, e engine, t Table) (sum [32]byte, n int64, err error) {
	columns, err := present(ctx, db, e, t)
	if err != nil {
		return sum, 0, err
	}
	rows, err := db.QueryContext(ctx, "SELECT "+e.names(columnNames(columns))+" FROM "+e.name(t.Name))
	if err != nil {
		return sum, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		values, err := scanRow(rows, columns)
		if err != nil {
			return sum, n, err
		}
		h := sha256.New()
		for i, v := range values {
			// A column that the other side has and this one lacks is NULL or its default there: both count as nothing.
			if v == nil {
				continue
			}
			text := fmt.Sprint(v)
			if at, ok := v.(time.Time); ok {
				text = at.Format(time.RFC3339)
			}
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(text))))
			h.Write([]byte(columns[i].Name + "=" + text))
		}
		for i, b := range h.Sum(nil) {
			sum[i] ^= b
		}
		n++
	}
	return sum, n, errors.Join(rows.Err(), rows.Close())
}

package directory

import (
	"fmt"
	"strings"
)

// Table is a table of the schema: IndiMail's names, columns and types (wiki 4123-4142), written once for every engine.
type Table struct {
	Name    string
	Columns []Column
	// Primary are the columns of the primary key.
	Primary []string
	// Unique and Indexes are further keys.
	Unique, Indexes [][]string
}

// Column is a column. Kind is "char", "text", "int", "big", "small", "stamp", a time that is the current one unless given, or
// "serial", a number that counts up.
type Column struct {
	Name string
	Kind string
	// Size is the most bytes of a "char".
	Size int
	// Null lets it be NULL; Default is its default in SQL, "" for none.
	Null    bool
	Default string
}

func char(name string, size int) Column     { return Column{Name: name, Kind: "char", Size: size} }
func optional(c Column) Column              { c.Null = true; return c }
func integer(name string) Column            { return Column{Name: name, Kind: "int"} }
func big(name string) Column                { return Column{Name: name, Kind: "big"} }
func small(name string) Column              { return Column{Name: name, Kind: "small"} }
func stamp(name string) Column              { return Column{Name: name, Kind: "stamp"} }
func otherwise(c Column, def string) Column { c.Default = def; return c }

// users has the columns of indimail and indibak (wiki 3088-3103).
func users(name string) Table {
	return Table{
		Name: name,
		Columns: []Column{
			char("pw_name", 40), char("pw_domain", 67), char("pw_passwd", 128), optional(integer("pw_uid")), optional(integer("pw_gid")),
			char("pw_gecos", 48), optional(char("pw_dir", 156)), optional(char("pw_shell", 30)), optional(char("scram", 255)), stamp("timestamp"),
		},
		Primary: []string{"pw_name", "pw_domain"}, Indexes: [][]string{{"pw_gecos"}, {"pw_uid"}, {"pw_domain", "pw_name"}, {"pw_dir"}},
	}
}

// Schema is every table of the directory, IndiMail's and Indigo's own, which begin with indigo_.
func Schema() []Table {
	limits := Table{Name: "vlimits", Columns: []Column{char("domain", 67)}, Primary: []string{"domain"}}
	for _, name := range []string{"domain_expiry", "passwd_expiry", "maxpopaccounts", "maxaliases", "maxforwards", "maxautoresponders", "maxmailinglists"} {
		limits.Columns = append(limits.Columns, otherwise(integer(name), "-1"))
	}
	for _, name := range []string{"diskquota", "maxmsgcount", "defaultquota", "defaultmaxmsgcount"} {
		limits.Columns = append(limits.Columns, otherwise(big(name), "0"))
	}
	for _, name := range []string{
		"disable_pop", "disable_imap", "disable_dialup", "disable_passwordchanging", "disable_webmail", "disable_relay", "disable_smtp",
		"perm_account", "perm_alias", "perm_forward", "perm_autoresponder", "perm_maillist", "perm_quota", "perm_defaultquota",
	} {
		limits.Columns = append(limits.Columns, otherwise(small(name), "0"))
	}
	limits.Columns = append(limits.Columns, stamp("timestamp"))
	senders := func(name string) Table {
		return Table{Name: name, Columns: []Column{char("email", 64), stamp("timestamp")}, Primary: []string{"email"}, Indexes: [][]string{{"timestamp"}}}
	}
	return []Table{
		users("indimail"), users("indibak"),
		{Name: "indigo_domain", Columns: []Column{
			char("domain", 67), char("dir", 156), stamp("created"),
			// Where homes of new users go (homes.go): a directory in dir's place, the most in one directory, and how many are full.
			optional(char("base_path", 156)), optional(integer("users_per_level")), optional(integer("full_levels")),
		}, Primary: []string{"domain"}},
		{Name: "indigo_moved", Columns: []Column{char("old_dir", 156), char("new_dir", 156), stamp("moved")}, Primary: []string{"old_dir"}, Indexes: [][]string{{"new_dir"}}},
		{Name: "relay", Columns: []Column{char("email", 96), char("ipaddr", 45), optional(integer("timestamp"))}, Unique: [][]string{{"email", "ipaddr"}}, Indexes: [][]string{{"ipaddr"}, {"timestamp"}}},
		{Name: "atrn_map", Columns: []Column{char("pw_name", 40), char("pw_domain", 67), optional(char("domain_list", 67)), stamp("timestamp")}, Unique: [][]string{{"pw_name", "pw_domain", "domain_list"}}},
		{Name: "bulkmail", Columns: []Column{char("emailid", 107), char("filename", 64), stamp("zztimestamp")}, Primary: []string{"emailid", "filename"}},
		{Name: "fstab", Columns: []Column{char("filesystem", 64), char("host", 64), integer("status"), big("max_users"), big("cur_users"), big("max_size"), big("cur_size"), stamp("timestamp")}, Primary: []string{"filesystem", "host"}, Indexes: [][]string{{"status"}}},
		{Name: "ip_alias_map", Columns: []Column{char("ipaddr", 45), optional(char("domain", 67)), stamp("timestamp")}, Primary: []string{"ipaddr"}},
		{Name: "lastauth", Columns: []Column{char("user", 40), char("domain", 67), char("service", 10), char("remote_ip", 45), integer("quota"), char("gecos", 48), stamp("timestamp")}, Primary: []string{"user", "domain", "service"}, Indexes: [][]string{{"gecos"}, {"quota"}, {"timestamp"}}},
		{Name: "userquota", Columns: []Column{char("user", 40), char("domain", 67), big("quota"), stamp("timestamp")}, Primary: []string{"user", "domain"}, Indexes: [][]string{{"quota"}}},
		{Name: "valias", Columns: []Column{char("alias", 40), char("domain", 67), char("valias_line", 190), stamp("timestamp")}, Unique: [][]string{{"alias", "domain", "valias_line"}}},
		{Name: "vfilter", Columns: []Column{char("emailid", 107), small("filter_no"), char("filter_name", 32), small("header_name"), small("comparision"), char("keyword", 64), char("destination", 156), char("bounce_action", 64), small("mailing_list"), stamp("timestamp")}, Primary: []string{"emailid", "filter_no"}, Unique: [][]string{{"emailid", "header_name", "comparision", "keyword", "destination"}}},
		{Name: "mailing_list", Columns: []Column{char("emailid", 107), small("filter_no"), char("mailing_list", 64), stamp("timestamp")}, Primary: []string{"emailid", "mailing_list"}, Indexes: [][]string{{"emailid", "filter_no"}}},
		limits,
		{Name: "vlog", Columns: []Column{{Name: "id", Kind: "serial"}, optional(char("user", 40)), optional(char("passwd", 28)), optional(char("domain", 67)), optional(char("logon", 32)), optional(char("remoteip", 45)), optional(char("message", 254)), stamp("timestamp"), optional(integer("error"))}, Primary: []string{"id"}, Indexes: [][]string{{"user"}, {"domain"}, {"timestamp"}}},
		{Name: "aliasdomain", Columns: []Column{char("alias", 67), optional(char("domain", 67)), stamp("timestamp")}, Primary: []string{"alias"}},
		{Name: "dbinfo", Columns: []Column{char("filename", 255), char("domain", 67), small("distributed"), char("server", 64), char("mdahost", 64), integer("port"), optional(char("socket", 128)), char("dbname", 64), char("user", 64), char("passwd", 64), stamp("timestamp")}, Primary: []string{"filename", "domain", "server"}},
		{Name: "host_table", Columns: []Column{char("host", 64), char("ipaddr", 45), stamp("timestamp")}, Primary: []string{"host"}, Indexes: [][]string{{"ipaddr"}}},
		{Name: "mgmtaccess", Columns: []Column{char("user", 32), char("pass", 128), integer("pw_uid"), integer("pw_gid"), integer("lastaccess"), integer("lastupdate"), char("day", 2), integer("attempts"), char("status", 2), stamp("zztimestamp")}, Primary: []string{"user"}},
		{Name: "smtp_port", Columns: []Column{char("host", 64), char("src_host", 64), char("domain", 64), optional(integer("port")), stamp("timestamp")}, Primary: []string{"domain", "host", "src_host"}},
		{Name: "vpriv", Columns: []Column{char("user", 32), char("program", 64), optional(char("cmdswitches", 128)), stamp("timestamp")}, Primary: []string{"user", "program"}},
		{Name: "spam", Columns: []Column{char("email", 64), integer("spam_count"), stamp("timestamp")}, Indexes: [][]string{{"email"}, {"spam_count"}, {"timestamp"}}},
		senders("badmailfrom"), senders("badrcptto"), senders("spamdb"),
		{Name: "indigo_app_password", Columns: []Column{char("pw_name", 40), char("pw_domain", 67), char("name", 32), char("hash", 64), char("services", 32), big("created"), big("used")}, Primary: []string{"pw_domain", "pw_name", "name"}},
		{Name: "indigo_mechanism", Columns: []Column{char("pw_domain", 67), char("pw_name", 40), char("protocol", 8), char("mechanism", 24), small("tls"), big("used")}, Primary: []string{"pw_domain", "pw_name", "protocol", "mechanism", "tls"}},
		{Name: "indigo_change", Columns: []Column{integer("id"), big("version")}, Primary: []string{"id"}},
	}
}

// sqlType gives a column's type with its constraints.
func (e engine) sqlType(c Column) string {
	null := " NOT NULL"
	if c.Null {
		null = ""
	}
	def := ""
	if c.Default != "" {
		def = " DEFAULT " + c.Default
	}
	switch c.Kind {
	case "char":
		// PostgreSQL's CHAR gives back blanks up to the size; MySQL's VARCHAR and CHAR differ in storage only.
		if e == postgreSQL {
			return fmt.Sprintf("VARCHAR(%d)", c.Size) + null + def
		}
		return fmt.Sprintf("CHAR(%d)", c.Size) + null + def
	case "int":
		return "INT" + null + def
	case "big":
		return "BIGINT" + null + def
	case "small":
		return "SMALLINT" + null + def
	case "serial":
		return map[engine]string{sqLite: "INTEGER NOT NULL", mySQL: "BIGINT NOT NULL AUTO_INCREMENT", postgreSQL: "BIGSERIAL NOT NULL"}[e]
	}
	now := "TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP"
	if e == mySQL {
		now += " ON UPDATE CURRENT_TIMESTAMP"
	}
	return now
}

// name quotes a name where the engine's grammar wants it: "user" is a word of PostgreSQL's.
func (e engine) name(s string) string {
	if e == mySQL {
		return "`" + s + "`"
	}
	return `"` + s + `"`
}

func (e engine) names(all []string) string {
	quoted := make([]string, len(all))
	for i, one := range all {
		quoted[i] = e.name(one)
	}
	return strings.Join(quoted, ", ")
}

// create gives the statements that make a table and its keys; what is there stays as it is.
func (e engine) create(t Table) (statements []string) {
	var parts []string
	for _, c := range t.Columns {
		parts = append(parts, e.name(c.Name)+" "+e.sqlType(c))
	}
	if t.Primary != nil {
		parts = append(parts, "PRIMARY KEY ("+e.names(t.Primary)+")")
	}
	if e == mySQL {
		// MySQL has no CREATE INDEX IF NOT EXISTS.
		for _, u := range t.Unique {
			parts = append(parts, "UNIQUE INDEX ("+e.names(u)+")")
		}
		for _, i := range t.Indexes {
			parts = append(parts, "INDEX ("+e.names(i)+")")
		}
	}
	statements = append(statements, "CREATE TABLE IF NOT EXISTS "+e.name(t.Name)+" ("+strings.Join(parts, ", ")+")")
	if e == mySQL {
		return statements
	}
	for n, keys := range [][][]string{t.Unique, t.Indexes} {
		for _, key := range keys {
			statements = append(statements, fmt.Sprintf("CREATE %sINDEX IF NOT EXISTS %s ON %s (%s)", []string{"UNIQUE ", ""}[n], e.name(t.Name+"_"+strings.Join(key, "_")), e.name(t.Name), e.names(key)))
		}
	}
	return statements
}

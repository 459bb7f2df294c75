-- +goose Up
-- The table indimail has IndiMail's columns and no others (wiki 3088-3103), so that its SQL works here.
CREATE TABLE indimail (
	pw_name   CHAR(40)  NOT NULL,
	pw_domain CHAR(67)  NOT NULL,
	pw_passwd CHAR(128) NOT NULL,
	pw_uid    INT,
	pw_gid    INT,
	pw_gecos  CHAR(48)  NOT NULL,
	pw_dir    CHAR(156),
	pw_shell  CHAR(30),
	scram     CHAR(255),
	timestamp TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
	PRIMARY KEY (pw_name, pw_domain)
);
CREATE INDEX indimail_domain ON indimail (pw_domain, pw_name);
-- IndiMail keeps its list of domains in users/assign; this table takes its place.
CREATE TABLE indigo_domain (
	domain  CHAR(67)  NOT NULL PRIMARY KEY,
	dir     CHAR(156) NOT NULL,
	created TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);
-- +goose Down
DROP TABLE indigo_domain;
DROP TABLE indimail;

# The targets that people and .ci/run use. `make test` is the one command.

GO ?= go
FUZZTIME ?= 30s
ROUNDS ?= 200
RELEASE := CGO_ENABLED=0 $(GO) build -trimpath
# Everything but the tests that start the built program.
UNIT = $$($(GO) list ./... | grep -v -e /test/e2e -e /test/crash)

# Installed below PREFIX; DESTDIR goes before it, for packages.
PREFIX ?= /usr/local
BIN = $(DESTDIR)$(PREFIX)/bin
# The helper for PAM is a module of its own, the only part in which there is C: it needs gcc and libpam0g-dev.
PAM := cd cmd/indigo-pam && CGO_ENABLED=1 $(GO)
HAS_PAM := $(shell command -v gcc >/dev/null && echo '\#include <security/pam_appl.h>' | gcc -E - >/dev/null 2>&1 && echo yes)
NO_PAM = without gcc and libpam0g-dev

.PHONY: build pam install uninstall test race lint fuzz crash bench bench-million bench-fair bench-logins peers unit e2e clean

build:
	$(RELEASE) -o indigo ./cmd/indigo
ifeq ($(HAS_PAM),yes)
	@$(MAKE) --no-print-directory pam
else
	@rm -f indigo-pam; echo "indigo-pam is not built $(NO_PAM): there are no logins by PAM"
endif

pam:
	$(PAM) build -trimpath -o ../../indigo-pam .

# It installs what is built, so that root needs no Go.
install:
	@[ -x indigo ] || { echo "make build goes before make install"; exit 1; }
	install -d $(BIN)
	install -m 755 indigo $(BIN)/indigo
	@if [ -x indigo-pam ]; then set -x; install -m 755 indigo-pam $(BIN)/indigo-pam; fi

uninstall:
	rm -f $(BIN)/indigo $(BIN)/indigo-pam

test: build peers
	$(GO) vet ./...
	$(GO) test ./...
	@echo; echo "What was skipped, and why:"
	@$(GO) test -v ./test/... 2>/dev/null | awk '/^ *--- SKIP/ {n++; print; getline; print} END {if (!n) print "  nothing"}'

peers:
	@test/peers

unit:
	$(GO) test $(UNIT)

race:
	$(GO) test -race $(UNIT)

e2e:
	$(GO) test -count=1 ./test/e2e

lint:
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "gofmt:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
ifeq ($(HAS_PAM),yes)
	$(PAM) vet ./...
	$(PAM) tool -modfile=../../tools/go.mod staticcheck ./...
else
	@echo "cmd/indigo-pam is not looked at $(NO_PAM)"; [ -z "$$INDIGO_REQUIRE_PEERS" ]
endif

fuzz:
	@test/fuzz $(FUZZTIME)

crash:
	$(GO) test -count=1 ./internal/queue/seglog -run TestModel -crashes 10000
	$(GO) test -count=1 -v ./test/e2e -run TestImportKilled -users 100000
	$(GO) test -count=1 -timeout 60m -v ./internal/queue -run '^TestModel$$' -runs 25000
	$(GO) test -count=1 -timeout 0 -v ./test/crash -run TestKill -rounds $$(( $(ROUNDS) * 10 ))

bench: peers
	@dir=$$(bench/fs.sh) && $(GO) run ./bench/indigobench -dir $$dir $(BENCHFLAGS); bench/fs.sh off

bench-million:
	@dir=$$(bench/fs.sh) && $(GO) run ./bench/indigobench -dir $$dir -million 1000000 -size 1024 $(BENCHFLAGS); bench/fs.sh off

# 100,000 messages for a dead host and as many for a silent one, beside a living one.
bench-fair:
	@dir=$$(bench/fs.sh) && $(GO) run ./bench/indigobench -dir $$dir -fair 100000 $(BENCHFLAGS); bench/fs.sh off

# Logins a second by each stored form, beside Debian's Dovecot.
bench-logins: peers
	@dir=$$(bench/fs.sh) && $(GO) run ./bench/indigobench -dir $$dir -logins $(BENCHFLAGS); bench/fs.sh off

clean:
	rm -rf indigo indigo-pam bench/out

# make test is the one command; the others are its parts and what takes longer.
GO ?= go
FUZZTIME ?= 30s
ROUNDS ?= 20

.PHONY: build test race lint fuzz crash peers

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o indigo ./cmd/indigo

# Real clients that the end-to-end tests use. Without root or without packages the tests say what they skip.
peers:
	@if ! command -v swaks >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	      swaks libnet-ssleay-perl libio-socket-ssl-perl libauthen-sasl-perl libdigest-hmac-perl python3 curl openssl >/dev/null; \
	  else echo "peers: swaks is missing and cannot be installed: its tests will be skipped"; fi; fi

test: peers
	$(GO) vet ./...
	$(GO) test $$($(GO) list ./... | grep -v /test/)
	$(GO) test ./test/... -rounds $(ROUNDS)

race:
	$(GO) test -race $$($(GO) list ./... | grep -v /test/)

lint:
	@test -z "$$(gofmt -l cmd internal test)" || { gofmt -l cmd internal test; exit 1; }
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

fuzz:
	@test/fuzz $(FUZZTIME)

crash:
	$(GO) test ./test/e2e -run TestCrash -rounds 2000 -timeout 80m

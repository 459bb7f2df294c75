// Command indigo is the IndiMail messaging platform in one binary; see docs/ for what it does.
package main

import (
	"os"

	"github.com/indigomail/indigo/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
}

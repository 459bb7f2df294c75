package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/indigomail/indigo/internal/"

// floors is the plan of docs/architecture.md.
var floors = map[string]int{
	"addr": 1, "message": 1, "netstring": 1, "compose": 1, "maildir": 1, "bounce": 1, "wire": 1, "mailerr": 1, "cdb": 1, "instruct": 1, "dovecot": 1,
	"settings": 2, "directory": 2, "auth": 2, "auth/sasl": 2, "auth/oauth": 2, "dnsx": 2, "tlsx": 2, "trace": 2, "door": 2, "queue/seglog": 2, "lists": 2, "acme": 2, "redis": 2,
	"policy": 3, "probe": 3, "queue": 3, "route": 3, "local": 3, "remote": 3, "turn": 3,
	"smtpd": 4, "inject": 4, "pop3d": 4, "imapd": 4, "authd": 4,
	"service": 5, "cli": 6, "lab": 6, "archtest": 6,
}

// forbidden names calls that only some packages may make: a station's clock and network are handed in.
func forbidden(pkg, call string) bool {
	switch call {
	case "os.Getenv", "os.LookupEnv", "os.Environ":
		return pkg != "settings"
	case "net.Dial":
		return floors[pkg] == 3
	}
	return false
}

func TestFloors(t *testing.T) {
	root := ".."
	documented := map[string]bool{}
	seen := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		seen++
		pkg := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), root+string(filepath.Separator)))
		floor, ok := floors[pkg]
		if !ok {
			t.Errorf("%s: package %s has no floor", path, pkg)
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if file.Doc != nil {
			documented[pkg] = true
		} else if _, known := documented[pkg]; !known {
			documented[pkg] = false
		}
		if strings.HasSuffix(path, "_test.go") {
			return nil
		}
		for _, i := range file.Imports {
			name, _ := strconv.Unquote(i.Path.Value)
			below, ours := strings.CutPrefix(name, module)
			if !ours {
				continue
			}
			if floors[below] > floor {
				t.Errorf("%s: %s (floor %d) imports %s (floor %d)", path, pkg, floor, below, floors[below])
			}
			if floor == 4 && floors[below] == 4 {
				t.Errorf("%s: the door %s imports the door %s", path, pkg, below)
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && forbidden(pkg, x.Name+"."+s.Sel.Name) {
					t.Errorf("%s: %s.%s in package %s", set.Position(s.Pos()), x.Name, s.Sel.Name, pkg)
				}
			}
			return true
		})
		return nil
	})
	if err != nil || seen < 20 {
		t.Fatalf("%d files read, %v", seen, err)
	}
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("package %s has no comment", pkg)
		}
	}
}

package oci

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// leaves are the paths of all fields of a type that are not structures themselves, without those of other platforms. A list's
// and a map's are marked.
func leaves(t reflect.Type, path string) (list []string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return leaves(t.Elem(), path+"[]")
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Struct:
		return leaves(t.Elem(), path+"{}")
	case t.Kind() != reflect.Struct:
		return []string{path}
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if p := f.Tag.Get("platform"); p != "" && !strings.Contains(p, "linux") {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		at := path
		if !f.Anonymous {
			at = strings.TrimPrefix(path+"."+name, ".")
		}
		list = append(list, leaves(f.Type, at)...)
	}
	return list
}

const coverageDoc = "../docs/oci-coverage.md"

// row is a line of the document's tables: the field, where it is compiled, the tests, and what else there is to say.
var row = regexp.MustCompile("^\\| `([^`]+)` \\| ([^|]*) \\| ([^|]*) \\| ([^|]*) \\|$")

func TestTheCoverageTableHasEveryField(t *testing.T) {
	text, err := os.ReadFile(coverageDoc)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		m := row.FindStringSubmatch(line)
		if m == nil {
			if strings.HasPrefix(line, "| `") {
				t.Errorf("not a row: %s", line)
			}
			continue
		}
		if rows[m[1]] != nil {
			t.Errorf("%s is there twice", m[1])
		}
		rows[m[1]] = m[2:]
	}
	tests := testNames(t)
	seen := map[string]bool{}
	for _, path := range leaves(reflect.TypeFor[specs.Spec](), "") {
		seen[path] = true
		r := rows[path]
		if r == nil {
			t.Errorf("no row for %s", path)
			continue
		}
		refusedHere := strings.HasPrefix(r[0], "refused")
		if !refusedHere && !strings.HasPrefix(r[0], "nothing") {
			for _, file := range strings.Split(r[0], ", ") {
				if _, err := os.Stat(filepath.Join("..", strings.Trim(file, "`"))); err != nil {
					t.Errorf("%s: %v", path, err)
				}
			}
		}
		if strings.TrimSpace(r[1]) == "" {
			t.Errorf("%s: no test", path)
		}
		fromInside := false
		for _, name := range strings.Split(r[1], ", ") {
			if reason, ok := strings.CutPrefix(name, "none: "); ok && reason != "" {
				fromInside = true
				continue
			}
			name = strings.Trim(name, "` ")
			where, ok := tests[name]
			if !ok {
				t.Errorf("%s: there is no test %s", path, name)
			}
			fromInside = fromInside || strings.HasPrefix(where, "integration")
		}
		if !fromInside {
			t.Errorf("%s: no test of integration/, and no \"none: \" with the reason", path)
		}
		if is := refusedInCode(path); is != refusedHere {
			t.Errorf("%s: refused %v in the code, %v in the document", path, is, refusedHere)
		}
	}
	for path := range rows {
		if !seen[path] {
			t.Errorf("the specification has no %s", path)
		}
	}
}

// refusedInCode looks a path up in the table of what is compiled.
func refusedInCode(path string) bool {
	p := strings.NewReplacer("[]", "", "{}", "").Replace(path)
	for p != "" {
		if how, ok := coverage[p]; ok {
			return how == refused
		}
		p = p[:max(0, strings.LastIndexByte(p, '.'))]
	}
	return false
}

// testNames are the tests of the whole repository, each with the directory that it is in.
func testNames(t *testing.T) map[string]string {
	names := map[string]string{}
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel("..", filepath.Dir(path))
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") || f.Name.Name == "TestMain" || len(f.Type.Params.List) != 1 {
				continue
			}
			// A name that is there twice is taken for the one that shows less.
			if before, twice := names[f.Name.Name]; !twice || strings.HasPrefix(before, "integration") {
				names[f.Name.Name] = dir
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

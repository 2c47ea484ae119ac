package oci

import (
	"fmt"
	"path"
	"strings"

	"github.com/rsys-io/rsys/rsys/call"
	"golang.org/x/sys/unix"
)

// candidates are the paths at which a program of a name may be. A directory in PATH that is
// not absolute is left out: what it means depends on who looks.
func candidates(name string, env []string) []string {
	if name == "" {
		return nil
	}
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var list []string
	for dir := range strings.SplitSeq(lookupEnv(env, "PATH"), ":") {
		if path.IsAbs(dir) {
			list = append(list, path.Join(dir, name))
		}
	}
	return list
}

func lookupEnv(env []string, key string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, _ := strings.Cut(env[i], "="); k == key {
			return v
		}
	}
	return ""
}

// lookup finds the program, so that Create fails if there is none.
func (c *compiler) lookup() {
	l := &c.Lookup
	l.Name = c.proc.Args[0]
	l.Candidates = candidates(l.Name, c.proc.Env)
	if p := c.req.Program; p != "" {
		l.Name, l.Candidates = p, []string{p}
	}
	c.at("process.args", "")
	if len(l.Candidates) == 1 && !path.IsAbs(l.Candidates[0]) {
		c.try(call.Chdir(path.Clean(c.proc.Cwd)), call.Tolerate(unix.EACCES))
	}
	for _, p := range l.Candidates {
		c.about(p)
		st := c.try(call.Statx(call.CWD, p, 0, unix.STATX_TYPE|unix.STATX_MODE), call.Ignore)
		file := c.try(call.Expect(call.Int32Of(st, 4, call.StatxModeOff), unix.S_IFMT, unix.S_IFREG, unix.EISDIR), call.Tolerate(unix.EISDIR))
		l.Steps = append(l.Steps, c.try(call.Faccessat2(call.CWD, p, 1 /* X_OK */, unix.AT_EACCESS), call.Ignore))
		c.errHere(st)
		c.errHere(file)
	}
	c.about("")
	l.Failed = c.fails(unix.ENOENT)
	for _, i := range l.Steps {
		c.okHere(i)
	}
}

// execve runs the program. Nothing but the kernel says which of the candidates it is.
func (c *compiler) execve(env []string) {
	argv, envp := call.Strings(c.proc.Args), call.Strings(env)
	for i, p := range c.Lookup.Candidates {
		c.at("process.args", p)
		policy := call.Tolerate(unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.ENAMETOOLONG, unix.ELOOP)
		if i == len(c.Lookup.Candidates)-1 {
			policy = call.Stop
		}
		c.Lookup.Exec = append(c.Lookup.Exec, c.try(call.ExecveArgs(p, argv, envp), policy))
	}
}

// Error is the error of a search that failed, or of a program that could not be run, in the words that
// users of runc know. result tells of a step whether it ran and its errno, 0 if it succeeded.
func (l Lookup) Error(result func(step int) (errno unix.Errno, ran bool)) error {
	var first unix.Errno
	for _, i := range l.Exec {
		if e, ran := result(i); ran && e != 0 && (first == 0 || first == unix.ENOENT || first == unix.ENOTDIR) {
			first = e
		}
	}
	if first != 0 {
		return fmt.Errorf("exec: %q: %w", l.Name, first)
	}
	if !strings.Contains(l.Name, "/") {
		return fmt.Errorf("exec: %q: executable file not found in $PATH", l.Name)
	}
	for _, i := range l.Steps {
		if e, ran := result(i - 2); ran && e != 0 {
			return fmt.Errorf("exec: %q: stat %s: %w", l.Name, l.Name, e)
		}
		if e, ran := result(i - 1); ran && e != 0 {
			return fmt.Errorf("exec: %q: %w", l.Name, e)
		}
		if e, ran := result(i); ran && e != 0 {
			return fmt.Errorf("exec: %q: %w", l.Name, e)
		}
	}
	return fmt.Errorf("exec: %q: %w", l.Name, unix.ENOENT)
}

package cgroup

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A DeviceRule is an exception from what a device list says in general. A major or minor of -1 is any.
type DeviceRule struct {
	Type         byte // 'b' or 'c'
	Major, Minor int64
	Access       string // of "rwm"
}

func (r DeviceRule) String() string {
	n := func(v int64) string {
		if v == -1 {
			return "*"
		}
		return fmt.Sprint(v)
	}
	return fmt.Sprintf("%c %s:%s %s", r.Type, n(r.Major), n(r.Minor), r.Access)
}

// A DeviceList is what a container may do with devices: nothing except the exceptions, or (AllowAll)
// everything except them.
type DeviceList struct {
	AllowAll   bool
	Exceptions []DeviceRule
}

// defaultDevices are allowed after what the config says, as runc does: making any node, and using those
// that every container has.
var defaultDevices = []DeviceRule{
	{'c', -1, -1, "m"}, {'b', -1, -1, "m"},
	{'c', 1, 3, "rwm"},    // null
	{'c', 1, 8, "rwm"},    // random
	{'c', 1, 7, "rwm"},    // full
	{'c', 5, 0, "rwm"},    // tty
	{'c', 1, 5, "rwm"},    // zero
	{'c', 1, 9, "rwm"},    // urandom
	{'c', 136, -1, "rwm"}, // pts/*
	{'c', 5, 2, "rwm"},    // ptmx
	{'c', 10, 200, "rwm"}, // net/tun: see runc's pull request 3468
}

// DeviceRules reduces the config's list, in which later entries change earlier ones, to what it comes to. Without a
// list nothing but the defaults is allowed. An entry that takes away a part of what a wildcard gave is refused: v1
// ignores it silently, and v2 shall mean the same.
func DeviceRules(r *specs.LinuxResources) (*DeviceList, error) {
	l := &DeviceList{}
	if r != nil {
		for i, d := range r.Devices {
			field := fmt.Sprintf("linux.resources.devices[%d]", i)
			if d.Access == "" || strings.Trim(d.Access, "rwm") != "" {
				return nil, &FieldError{field + ".access", fmt.Sprintf("%q is not made of r, w and m", d.Access)}
			}
			switch d.Type {
			case "", "a":
				*l = DeviceList{AllowAll: d.Allow}
				continue
			case "b", "c":
			default:
				return nil, &FieldError{field + ".type", fmt.Sprintf("%q is not a, b or c", d.Type)}
			}
			rule := DeviceRule{Type: d.Type[0], Major: -1, Minor: -1, Access: d.Access}
			for _, x := range []struct {
				name string
				from *int64
				to   *int64
			}{{"major", d.Major, &rule.Major}, {"minor", d.Minor, &rule.Minor}} {
				if x.from != nil {
					if *x.from < -1 || *x.from > 1<<32-1 {
						return nil, &FieldError{field + "." + x.name, fmt.Sprintf("%d can't be a device number", *x.from)}
					}
					*x.to = *x.from
				}
			}
			if err := l.apply(rule, d.Allow); err != nil {
				return nil, &FieldError{field, err.Error()}
			}
		}
	}
	for _, rule := range defaultDevices {
		if err := l.apply(rule, true); err != nil {
			return nil, &FieldError{"linux.resources.devices", fmt.Sprintf("%v, which every container needs: %v", rule, err)}
		}
	}
	return l, nil
}

// apply allows or denies a rule: what agrees with the list in general removes an exception, what does not is one.
func (l *DeviceList) apply(r DeviceRule, allow bool) error {
	at := slices.IndexFunc(l.Exceptions, func(e DeviceRule) bool {
		return e.Type == r.Type && e.Major == r.Major && e.Minor == r.Minor
	})
	if allow != l.AllowAll { // an exception
		if at < 0 {
			l.Exceptions = append(l.Exceptions, r)
			return nil
		}
		l.Exceptions[at].Access = keep("rwm", func(c rune) bool {
			return strings.ContainsRune(l.Exceptions[at].Access+r.Access, c)
		})
		return nil
	}
	for _, e := range l.Exceptions {
		wider := e.Type == r.Type && (e.Major == -1 || e.Major == r.Major) && (e.Minor == -1 || e.Minor == r.Minor)
		if wider && (e.Major != r.Major || e.Minor != r.Minor) && strings.ContainsAny(e.Access, r.Access) {
			return fmt.Errorf("%v would make a hole in the wider %v", r, e)
		}
	}
	if at >= 0 {
		rest := keep(l.Exceptions[at].Access, func(c rune) bool { return !strings.ContainsRune(r.Access, c) })
		if rest == "" {
			l.Exceptions = slices.Delete(l.Exceptions, at, at+1)
		} else {
			l.Exceptions[at].Access = rest
		}
	}
	return nil
}

func keep(s string, f func(rune) bool) string {
	return strings.Map(func(c rune) rune {
		if f(c) {
			return c
		}
		return -1
	}, s)
}

// set writes the list to a v1 devices cgroup.
func (l *DeviceList) set(dir string) error {
	first, then := "devices.deny", "devices.allow"
	if l.AllowAll {
		first, then = then, first
	}
	if err := write(dir, first, "a"); err != nil {
		return fmt.Errorf("linux.resources.devices: %w", err)
	}
	if len(l.Exceptions) == 0 {
		return nil
	}
	f, err := openFile(dir, then, true)
	if err != nil {
		return fmt.Errorf("linux.resources.devices: %w", err)
	}
	defer f.Close()
	for _, e := range l.Exceptions {
		if err := f.write(e.String()); err != nil {
			return fmt.Errorf("linux.resources.devices: %w", err)
		}
	}
	return nil
}

package systemd

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/godbus/dbus/v5"
)

// A Property of a unit. Its fields are in the order that D-Bus has them.
type Property struct {
	Name  string
	Value dbus.Variant
}

// Prop is a property whose type is the value's.
func Prop(name string, value any) Property { return Property{name, dbus.MakeVariant(value)} }

// A Device is an element of DeviceAllow.
type Device struct {
	Path   string // "/dev/char/1:3", "char-136", "block-*"
	Access string // of "rwm"
}

// annotation is how the names of a container's annotations begin that are properties of its scope.
const annotation = "org.systemd.property."

// Annotations are the properties that a container's annotations ask for, as runc has them: the value is in GVariant's text
// form, and a time whose name ends in Sec may be given in seconds.
func Annotations(annotations map[string]string) ([]Property, error) {
	var props []Property
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		name, ok := strings.CutPrefix(key, annotation)
		if !ok {
			continue
		}
		fail := func(reason any) error {
			return fmt.Errorf("annotations[%s]: %q: %v: %w", key, annotations[key], reason, errdefs.ErrInvalidArgument)
		}
		if len(name) < 3 || strings.IndexFunc(name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') }) >= 0 {
			return nil, fail("not the name of a property")
		}
		value, err := dbus.ParseVariant(annotations[key], dbus.Signature{})
		if err != nil {
			return nil, fail(err)
		}
		if base, ok := strings.CutSuffix(name, "Sec"); ok && base != "" && base[len(base)-1] >= 'a' && base[len(base)-1] <= 'z' {
			usec, err := microseconds(value.Value())
			if err != nil {
				return nil, fail(err)
			}
			name, value = base+"USec", dbus.MakeVariant(usec)
		}
		props = append(props, Property{name, value})
	}
	return props, nil
}

func microseconds(seconds any) (uint64, error) {
	const second = 1000000
	switch n := seconds.(type) {
	case byte:
		return uint64(n) * second, nil
	case int16:
		return uint64(n) * second, nil
	case uint16:
		return uint64(n) * second, nil
	case int32:
		return uint64(n) * second, nil
	case uint32:
		return uint64(n) * second, nil
	case int64:
		return uint64(n) * second, nil
	case uint64:
		return n * second, nil
	case float64:
		return uint64(n * second), nil
	}
	return 0, fmt.Errorf("%v is not a number of seconds", seconds)
}

package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	manager = "org.freedesktop.systemd1.Manager"
	unitIfc = "org.freedesktop.systemd1.Unit"
	getProp = "org.freedesktop.DBus.Properties.Get"

	noSuchUnit = "org.freedesktop.systemd1.NoSuchUnit"
	unitExists = "org.freedesktop.systemd1.UnitExists"
)

// booted is there if systemd is the init of this host: sd_booted(3).
const booted = "/run/systemd/system"

// Where a manager is asked: its own socket, as systemctl does, and the system bus.
var (
	privateSocket = "unix:path=/run/systemd/private"
	systemBus     = "unix:path=/run/dbus/system_bus_socket"
)

// Running says with an error that systemd does not run here.
func Running() error {
	if fi, err := os.Lstat(booted); err == nil && fi.IsDir() {
		return nil
	}
	return fmt.Errorf("systemd is not the init of this host (there is no %s): %w", booted, errdefs.ErrFailedPrecondition)
}

// A conn is a connection to the manager.
type conn struct {
	bus     *dbus.Conn
	signals chan *dbus.Signal
	ctx     context.Context
	cancel  context.CancelFunc
}

// dial connects to the manager, over its own socket if it has one.
func dial(ctx context.Context) (*conn, error) {
	c, err := connect(ctx, privateSocket, false)
	if err == nil || ctx.Err() != nil {
		return c, err
	}
	c, busErr := connect(ctx, systemBus, true)
	if busErr != nil {
		return nil, fmt.Errorf("systemd can't be reached: %v; %w: %w", err, busErr, errdefs.ErrUnavailable)
	}
	return c, nil
}

func connect(ctx context.Context, address string, isBus bool) (*conn, error) {
	connCtx, cancel := context.WithCancel(ctx) // godbus closes the connection with it
	c := &conn{ctx: ctx, cancel: cancel}
	var err error
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		if c.bus, err = dbus.Dial(address, dbus.WithContext(connCtx)); !errors.Is(err, unix.EAGAIN) {
			break
		}
		// Many connect at once: the socket's backlog is full.
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			cancel()
			return nil, ctx.Err()
		}
	}
	if err == nil {
		err = c.hello(isBus)
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("%s: %w", strings.TrimPrefix(address, "unix:path="), err)
	}
	return c, nil
}

func (c *conn) hello(isBus bool) error {
	if err := c.bus.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		return err
	}
	c.signals = make(chan *dbus.Signal, 16)
	c.bus.Signal(c.signals)
	if !isBus {
		return nil // it sends its signals to all who are connected
	}
	if err := c.bus.Hello(); err != nil {
		return err
	}
	if err := c.bus.AddMatchSignalContext(c.ctx, dbus.WithMatchInterface(manager), dbus.WithMatchMember("JobRemoved")); err != nil {
		return err
	}
	return c.call("Subscribe").Err
}

func (c *conn) close() {
	if c.bus != nil {
		c.bus.Close()
	}
	c.cancel()
	if c.signals != nil {
		// What it still has to deliver must find a taker, until it closes the channel.
		go func() {
			for range c.signals {
			}
		}()
	}
}

func (c *conn) call(method string, args ...any) *dbus.Call {
	return c.object("/org/freedesktop/systemd1").CallWithContext(c.ctx, manager+"."+method, 0, args...)
}

func (c *conn) object(path dbus.ObjectPath) dbus.BusObject {
	return c.bus.Object("org.freedesktop.systemd1", path)
}

// job waits for the end of a job, which has this result.
func (c *conn) job(path dbus.ObjectPath) (result string, err error) {
	for {
		select {
		case s, ok := <-c.signals:
			if !ok {
				return "", dbus.ErrClosed
			}
			if s.Name != manager+".JobRemoved" || len(s.Body) < 4 {
				continue
			}
			if p, ok := s.Body[1].(dbus.ObjectPath); ok && p == path {
				result, _ = s.Body[3].(string)
				return result, nil
			}
		case <-c.ctx.Done():
			return "", c.ctx.Err()
		case <-c.bus.Context().Done():
			return "", dbus.ErrClosed
		}
	}
}

// run calls a method that makes a job, and waits for that.
func (c *conn) run(method string, args ...any) error {
	var job dbus.ObjectPath
	if err := c.call(method, args...).Store(&job); err != nil {
		return err
	}
	result, err := c.job(job)
	if err == nil && result != "done" {
		err = fmt.Errorf("the job ended with %q", result)
	}
	return err
}

// state is a unit's ActiveState; "" if systemd knows of none.
func (c *conn) state(unit string) (string, error) {
	var path dbus.ObjectPath
	if err := c.call("GetUnit", unit).Store(&path); err != nil {
		if is(err, noSuchUnit) {
			err = nil
		}
		return "", err
	}
	var state dbus.Variant
	if err := c.object(path).CallWithContext(c.ctx, getProp, 0, unitIfc, "ActiveState").Store(&state); err != nil {
		return "", err
	}
	s, _ := state.Value().(string)
	return s, nil
}

// version of the manager, the number alone.
func (c *conn) version() (int, error) {
	var v dbus.Variant
	if err := c.object("/org/freedesktop/systemd1").CallWithContext(c.ctx, getProp, 0, manager, "Version").Store(&v); err != nil {
		return 0, err
	}
	s, _ := v.Value().(string)
	return parseVersion(s)
}

// parseVersion reads "252.38-1~deb12u1", "v245.4-1.fc32".
func parseVersion(s string) (int, error) {
	digits := strings.TrimPrefix(s, "v")
	if i := strings.IndexFunc(digits, func(c rune) bool { return c < '0' || c > '9' }); i >= 0 {
		digits = digits[:i]
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("systemd says that its version is %q", s)
	}
	return n, nil
}

func is(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == name
}

// lost says whether a connection broke: systemd was executed anew, or the bus started again.
func lost(err error) bool {
	return errors.Is(err, dbus.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) ||
		is(err, "org.freedesktop.DBus.Error.NoReply") || is(err, "org.freedesktop.DBus.Error.Disconnected")
}

// do calls f with a connection, and again with a new one if that broke: f must bear being done twice.
func do(ctx context.Context, f func(c *conn, again bool) error) error {
	for again := false; ; again = true {
		c, err := dial(ctx)
		if err == nil {
			err = f(c, again)
			c.close()
		}
		if ctx.Err() != nil && err != nil {
			return fmt.Errorf("systemd: %w", context.Cause(ctx))
		}
		if !lost(err) && !(again && errors.Is(err, errdefs.ErrUnavailable)) {
			return kind(err)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// kind gives an error of systemd's the kind that a caller tells it by.
func kind(err error) error {
	var e dbus.Error
	if !errors.As(err, &e) {
		return err
	}
	reason := strings.TrimSuffix(e.Error(), ".")
	switch e.Name {
	case unitExists:
		return fmt.Errorf("systemd: %s: %w", reason, errdefs.ErrAlreadyExists)
	case "org.freedesktop.DBus.Error.InvalidArgs", "org.freedesktop.DBus.Error.PropertyReadOnly", "org.freedesktop.DBus.Error.UnknownProperty",
		"System.Error.ENXIO", "System.Error.EINVAL": // a value of another type, and one out of range
		return fmt.Errorf("systemd: %s: %w", reason, errdefs.ErrInvalidArgument)
	case "org.freedesktop.DBus.Error.AccessDenied":
		return fmt.Errorf("systemd: %s: %w", reason, errdefs.ErrPermissionDenied)
	}
	return fmt.Errorf("systemd: %s (%s)", reason, e.Name)
}

type auxUnit struct {
	Name       string
	Properties []Property
}

// Start makes the unit with these properties and waits until it is there, with the process in it that is among them.
func (u Unit) Start(ctx context.Context, props []Property) error {
	return do(ctx, func(c *conn, again bool) error {
		err := c.start(u, props)
		if is(err, unitExists) && again {
			return c.started(u) // by us, when the connection broke
		}
		if is(err, unitExists) {
			// One that failed stays until somebody says that he has seen it.
			if c.call("ResetFailedUnit", u.Name).Err == nil {
				err = c.start(u, props)
			}
		}
		return err
	})
}

func (c *conn) start(u Unit, props []Property) error {
	return c.run("StartTransientUnit", u.Name, "replace", props, []auxUnit{})
}

// started waits for a unit that is being started.
func (c *conn) started(u Unit) error {
	for {
		state, err := c.state(u.Name)
		switch {
		case err != nil:
			return err
		case state == "active":
			return nil
		case state != "activating" && state != "reloading":
			return fmt.Errorf("%s is %q", u.Name, state)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
	}
}

// Set changes properties until the next boot, and returns when systemd has put them into force.
func (u Unit) Set(ctx context.Context, props []Property) error {
	if len(props) == 0 {
		return nil
	}
	return do(ctx, func(c *conn, _ bool) error {
		if err := c.call("SetUnitProperties", u.Name, true, props).Err; err != nil {
			return err
		}
		// It answers before it writes to the cgroup, which it does before it reads the next request.
		_, err := c.version()
		return err
	})
}

// Stop ends the unit, and whatever runs in it, and has systemd forget it. If there is none, that is no error.
func (u Unit) Stop(ctx context.Context) error {
	return do(ctx, func(c *conn, _ bool) error {
		err := c.run("StopUnit", u.Name, "replace")
		if is(err, noSuchUnit) {
			return nil
		}
		// A unit that failed would stay; one that is gone has nothing to reset.
		_ = c.call("ResetFailedUnit", u.Name).Err
		return err
	})
}

// Version is systemd's, 252.
func Version(ctx context.Context) (v int, err error) {
	err = do(ctx, func(c *conn, _ bool) error {
		v, err = c.version()
		return err
	})
	return v, err
}

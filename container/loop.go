package container

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rsys-io/rsys/oci"
)

// attachLoop does a LoopAttach step, which is the next. The device is kept open until the steps that come after it, the mount
// among them, are done: nobody else may have it meanwhile.
func (r *run) attachLoop(ctx context.Context, s *oci.Step) error {
	device, number, err := newLoop(ctx, argString(s.Args[0]), uint32(s.Args[1].Int))
	if err != nil {
		return err
	}
	r.loops = append(r.loops, device)
	r.value = int64(number)
	r.plan.SetLoop(r.next, device.Name())
	return nil
}

// leaveLoops lets go of the loop devices. One that is mounted stays as long as that is so; any other ends.
func (r *run) leaveLoops() {
	for _, f := range r.loops {
		f.Close()
	}
	r.loops = nil
}

// loopTries is how often somebody else may be faster in taking the loop device that was free.
const loopTries = 100

// newLoop sets up a free loop device of the file at path, and opens it.
func newLoop(ctx context.Context, path string, flags uint32) (*os.File, int, error) {
	mode := os.O_RDWR
	if flags&unix.LO_FLAGS_READ_ONLY != 0 {
		mode = os.O_RDONLY
	}
	// A fifo would have an open wait.
	file, err := os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	if st, err := file.Stat(); err != nil {
		return nil, 0, err
	} else if !st.Mode().IsRegular() && st.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		return nil, 0, fmt.Errorf("%s: neither a file nor a block device", path)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: flags}}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], path)
	for try := 1; ; try++ {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, 0, fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), mode, 0)
		if err != nil {
			return nil, 0, err
		}
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &config); err == nil {
			return device, number, nil
		}
		device.Close()
		if err = fmt.Errorf("%s: LOOP_CONFIGURE: %w", device.Name(), err); !errors.Is(err, unix.EBUSY) || try == loopTries {
			return nil, 0, err
		}
		// Another one has taken it.
		select {
		case <-ctx.Done():
			return nil, 0, errors.Join(context.Cause(ctx), err)
		case <-time.After(time.Duration(rand.IntN(try*1000)) * time.Microsecond):
		}
	}
}

package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Metrics is an encoded io.containerd.cgroups.v1.Metrics or io.containerd.cgroups.v2.Metrics. It is a typeurl.Any, so that
// typeurl.MarshalAnyToProto takes it as it is. It is encoded here, field by field, because the generated
// packages register themselves when a process starts, and that is 0.4 ms, two times for each container.
type Metrics struct {
	url   string
	value message
}

// GetTypeUrl implements typeurl.Any.
func (m *Metrics) GetTypeUrl() string { return m.url } //nolint:revive // the interface's name

// GetValue implements typeurl.Any.
func (m *Metrics) GetValue() []byte { return m.value }

// Stats reads the metrics that containerd serves for a task. What this host does not count is left out.
func (c *Cgroup) Stats() (*Metrics, error) {
	if _, err := os.Lstat(c.dirs[0]); err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	s := &statReader{}
	m := &Metrics{}
	if c.layout.v2 {
		m.url, m.value = "io.containerd.cgroups.v2.Metrics", s.unified(c.dirs[0])
	} else {
		m.url, m.value = "io.containerd.cgroups.v1.Metrics", s.legacy(c)
	}
	if s.err != nil {
		return nil, fmt.Errorf("cgroup: %w", s.err)
	}
	return m, nil
}

// A message is the protobuf encoding of one. Fields that are 0 are not in it.
type message []byte

func (m *message) num(field int, v uint64) {
	if v != 0 {
		*m = binary.AppendUvarint(append(*m, tag(field, 0)...), v)
	}
}

func (m *message) double(field int, v float64) {
	if v != 0 {
		*m = binary.LittleEndian.AppendUint64(append(*m, tag(field, 1)...), math.Float64bits(v))
	}
}

func (m *message) bytes(field int, v []byte) {
	*m = append(binary.AppendUvarint(append(*m, tag(field, 2)...), uint64(len(v))), v...)
}

func (m *message) text(field int, v string) {
	if v != "" {
		m.bytes(field, []byte(v))
	}
}

func tag(field, wire int) []byte { return binary.AppendUvarint(nil, uint64(field<<3|wire)) }

// A statReader reads files, keeps the first error, and takes a file that is not there as an empty one.
type statReader struct{ err error }

func (s *statReader) file(dir, name string) string {
	if dir == "" || s.err != nil {
		return ""
	}
	v, err := read(dir, name)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENODEV) {
		s.err = err
	}
	return v
}

func (s *statReader) num(dir, name string) uint64 { return number(s.file(dir, name)) }

func (s *statReader) keys(dir, name string) map[string]uint64 { return keys(s.file(dir, name)) }

// number is a number, or no limit, which v2 writes as "max".
func number(s string) uint64 {
	s = strings.TrimSpace(s)
	if s == "max" {
		return math.MaxUint64
	}
	v, _ := strconv.ParseUint(s, 10, 64)
	return v
}

var legacyMemory = []string{
	"cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault",
	"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable",
	"hierarchical_memory_limit", "hierarchical_memsw_limit",
	"total_cache", "total_rss", "total_rss_huge", "total_mapped_file", "total_dirty", "total_writeback", "total_pgpgin",
	"total_pgpgout", "total_pgfault", "total_pgmajfault", "total_inactive_anon", "total_active_anon", "total_inactive_file",
	"total_active_file", "total_unevictable",
}

func (s *statReader) legacy(c *Cgroup) (m message) {
	if dir := c.dir("hugetlb"); dir != "" {
		for _, size := range hugetlbSizes(dir, ".usage_in_bytes") {
			var h message
			h.num(1, s.num(dir, "hugetlb."+size+".usage_in_bytes"))
			h.num(2, s.num(dir, "hugetlb."+size+".max_usage_in_bytes"))
			h.num(3, s.num(dir, "hugetlb."+size+".failcnt"))
			h.text(4, size)
			m.bytes(1, h)
		}
	}
	if dir := c.dir("pids"); dir != "" {
		var p message
		p.num(1, s.num(dir, "pids.current"))
		p.num(2, s.num(dir, "pids.max"))
		m.bytes(2, p)
	}
	if dir := c.dir("cpuacct"); dir != "" {
		var cpu, usage, throttle message
		ticks := s.keys(dir, "cpuacct.stat")
		usage.num(1, s.num(dir, "cpuacct.usage"))
		usage.num(2, ticks["system"]*1e7) // the kernel shows these in 1/100 s on every architecture of ours
		usage.num(3, ticks["user"]*1e7)
		if per := strings.Fields(s.file(dir, "cpuacct.usage_percpu")); len(per) > 0 {
			var packed []byte
			for _, v := range per {
				packed = binary.AppendUvarint(packed, number(v))
			}
			usage.bytes(4, packed)
		}
		cpu.bytes(1, usage)
		t := s.keys(c.dir("cpu"), "cpu.stat")
		throttle.num(1, t["nr_periods"])
		throttle.num(2, t["nr_throttled"])
		throttle.num(3, t["throttled_time"])
		cpu.bytes(2, throttle)
		m.bytes(3, cpu)
	}
	if dir := c.dir("memory"); dir != "" {
		var mem, oom message
		stat := s.keys(dir, "memory.stat")
		for i, k := range legacyMemory {
			mem.num(i+1, stat[k])
		}
		for i, kind := range []string{"", "memsw.", "kmem.", "kmem.tcp."} {
			if usage := s.file(dir, "memory."+kind+"usage_in_bytes"); usage != "" {
				var e message
				e.num(1, s.num(dir, "memory."+kind+"limit_in_bytes"))
				e.num(2, number(usage))
				e.num(3, s.num(dir, "memory."+kind+"max_usage_in_bytes"))
				e.num(4, s.num(dir, "memory."+kind+"failcnt"))
				mem.bytes(33+i, e)
			}
		}
		m.bytes(4, mem)
		o := s.keys(dir, "memory.oom_control")
		oom.num(1, o["oom_kill_disable"])
		oom.num(2, o["under_oom"])
		oom.num(3, o["oom_kill"])
		defer func() { m.bytes(9, oom) }()
	}
	if dir := c.dir("blkio"); dir != "" {
		var b message
		// Which files count depends on the I/O scheduler; the throttling layer's always do.
		for i, name := range []string{"io_service_bytes", "io_serviced", "io_queued", "io_service_time", "io_wait_time", "io_merged", "time", "sectors"} {
			for _, layer := range []string{"bfq.", "", "throttle."} {
				if s.blkio(&b, i+1, dir, "blkio."+layer+name+"_recursive") {
					break
				}
			}
		}
		m.bytes(5, b)
	}
	return m
}

// blkio adds the lines of a file like "8:0 Read 1282048", and says if there were any.
func (s *statReader) blkio(b *message, field int, dir, name string) (any bool) {
	for line := range strings.Lines(s.file(dir, name)) {
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ':' || r == '\n' })
		if len(f) < 3 { // the total
			continue
		}
		var e message
		if len(f) > 3 {
			e.text(1, f[2])
		}
		e.num(3, number(f[0]))
		e.num(4, number(f[1]))
		e.num(5, number(f[len(f)-1]))
		b.bytes(field, e)
		any = true
	}
	return any
}

var unifiedMemory = []string{
	"anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback", "anon_thp",
	"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable", "slab_unreclaimable",
	"pgfault", "pgmajfault", "workingset_refault", "workingset_activate", "workingset_nodereclaim", "pgrefill", "pgscan",
	"pgsteal", "pgactivate", "pgdeactivate", "pglazyfree", "pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc",
}

func (s *statReader) unified(dir string) (m message) {
	var pids, cpu, mem, io message
	if current := s.file(dir, "pids.current"); current != "" {
		pids.num(1, number(current))
		pids.num(2, s.num(dir, "pids.max"))
	} else {
		pids.num(1, uint64(len(parsePids(s.file(dir, "cgroup.procs")))))
	}
	m.bytes(1, pids)

	c := s.keys(dir, "cpu.stat")
	for i, k := range []string{"usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"} {
		cpu.num(i+1, c[k])
	}
	s.pressure(&cpu, 7, dir, "cpu.pressure")
	cpu.num(8, c["nr_bursts"])
	cpu.num(9, c["burst_usec"])
	m.bytes(2, cpu)

	if current := s.file(dir, "memory.current"); current != "" {
		stat := s.keys(dir, "memory.stat")
		for i, k := range unifiedMemory {
			mem.num(i+1, stat[k])
		}
		mem.num(32, number(current))
		for i, f := range []string{"memory.max", "memory.swap.current", "memory.swap.max", "memory.peak", "memory.swap.peak"} {
			mem.num(33+i, s.num(dir, f))
		}
		s.pressure(&mem, 38, dir, "memory.pressure")
		m.bytes(4, mem)
	}
	for line := range strings.Lines(s.file(dir, "io.stat")) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		major, minor, _ := strings.Cut(f[0], ":")
		var e message
		e.num(1, number(major))
		e.num(2, number(minor))
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			for i, name := range []string{"rbytes", "wbytes", "rios", "wios"} {
				if k == name {
					e.num(3+i, number(v))
				}
			}
		}
		io.bytes(1, e)
	}
	s.pressure(&io, 2, dir, "io.pressure")
	m.bytes(6, io)
	for _, size := range hugetlbSizes(dir, ".current") {
		var h message
		h.num(1, s.num(dir, "hugetlb."+size+".current"))
		h.num(2, s.num(dir, "hugetlb."+size+".max"))
		h.text(3, size)
		h.num(4, s.keys(dir, "hugetlb."+size+".events")["max"])
		m.bytes(7, h)
	}
	if events := s.file(dir, "memory.events"); events != "" {
		var e message
		ev := keys(events)
		for i, k := range []string{"low", "high", "max", "oom", "oom_kill", "oom_group_kill"} {
			e.num(i+1, ev[k])
		}
		m.bytes(8, e)
	}
	return m
}

// pressure adds "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the same with "full".
func (s *statReader) pressure(m *message, field int, dir, name string) {
	text := s.file(dir, name)
	if text == "" {
		return
	}
	var p message
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 5 {
			continue
		}
		var d message
		for i, kv := range f[1:] {
			_, v, _ := strings.Cut(kv, "=")
			if i < 3 {
				avg, _ := strconv.ParseFloat(v, 64)
				d.double(i+1, avg)
			} else {
				d.num(4, number(v))
			}
		}
		p.bytes(map[string]int{"some": 1, "full": 2}[f[0]], d)
	}
	m.bytes(field, p)
}

// hugetlbSizes are the page sizes that a directory has files for.
func hugetlbSizes(dir, suffix string) (sizes []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if size, ok := strings.CutPrefix(e.Name(), "hugetlb."); ok && strings.HasSuffix(size, suffix) && !strings.Contains(size, ".rsvd.") {
			sizes = append(sizes, strings.TrimSuffix(size, suffix))
		}
	}
	return sizes
}

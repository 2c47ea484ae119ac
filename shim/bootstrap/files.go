package bootstrap

import "syscall"

// Files by system call: package os comes with a poller and a hundred initialised errors.

func open(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := syscall.Open(path, flags|syscall.O_CLOEXEC, mode)
		if err != syscall.EINTR {
			return fd, err
		}
	}
}

func readFile(path string, limit int) ([]byte, error) {
	fd, err := open(path, syscall.O_RDONLY, 0)
	if err != nil {
		return nil, wrap("open "+path, err)
	}
	defer syscall.Close(fd)
	data, err := readAll(fd, limit)
	if err != nil {
		return nil, wrap("read "+path, err)
	}
	return data, nil
}

func readAll(fd, limit int) ([]byte, error) {
	data := make([]byte, 0, 16<<10)
	for {
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
		n, err := syscall.Read(fd, data[len(data):cap(data)])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return data, nil
		}
		if data = data[:len(data)+n]; len(data) > limit {
			return nil, syscall.EFBIG
		}
	}
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := syscall.Write(fd, data)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func writeFile(path, data string) error {
	fd, err := open(path, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC, 0o644)
	if err != nil {
		return wrap("open "+path, err)
	}
	err = writeAll(fd, []byte(data))
	if cerr := syscall.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return wrap("write "+path, err)
	}
	return nil
}

func mkdirAll(path string) error {
	err := syscall.Mkdir(path, 0o700)
	if err == syscall.ENOENT {
		for i := len(path) - 1; i > 0; i-- {
			if path[i] == '/' {
				if err := mkdirAll(path[:i]); err != nil {
					return err
				}
				break
			}
		}
		err = syscall.Mkdir(path, 0o700)
	}
	if err != nil && err != syscall.EEXIST {
		return wrap("mkdir "+path, err)
	}
	return nil
}

func readLink(path string) (string, error) {
	buf := make([]byte, syscall.PathMax)
	n, err := syscall.Readlink(path, buf)
	if err != nil {
		return "", wrap("readlink "+path, err)
	}
	return string(buf[:n]), nil
}

func readDir(path string) ([]string, error) {
	fd, err := open(path, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, wrap("open "+path, err)
	}
	defer syscall.Close(fd)
	var names []string
	buf := make([]byte, 8<<10)
	for {
		n, err := syscall.ReadDirent(fd, buf)
		if err != nil {
			return nil, wrap("read "+path, err)
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = syscall.ParseDirent(buf[:n], -1, names)
	}
}

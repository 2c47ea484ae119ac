package bootstrap

import (
	"strconv"
	"unicode/utf8"
)

const (
	errJSON     = failure("malformed JSON")
	errJSONDeep = failure("JSON nested too deeply")
	maxDepth    = 10000 // as encoding/json
)

// eachAnnotation calls f for each entry of the annotations of an OCI config. It reads what it does
// not need only as far as is needed to find its end.
func eachAnnotation(data []byte, f func(key, value string)) error {
	s := scanner{data: data}
	err := s.object(func(key string) error {
		if key != "annotations" {
			return s.skip(0)
		}
		if s.literal("null") {
			return nil
		}
		return s.object(func(key string) error {
			if s.literal("null") {
				f(key, "")
				return nil
			}
			value, err := s.text()
			if err != nil {
				return wrap("annotations["+strconv.Quote(key)+"]", err)
			}
			f(key, value)
			return nil
		})
	})
	return err
}

type scanner struct {
	data []byte
	pos  int
}

func (s *scanner) space() {
	for s.pos < len(s.data) {
		switch s.data[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return
		}
	}
}

func (s *scanner) take(c byte) bool {
	s.space()
	if s.pos < len(s.data) && s.data[s.pos] == c {
		s.pos++
		return true
	}
	return false
}

func (s *scanner) literal(word string) bool {
	s.space()
	if len(s.data)-s.pos >= len(word) && string(s.data[s.pos:s.pos+len(word)]) == word {
		s.pos += len(word)
		return true
	}
	return false
}

// object reads an object, calling member with the scanner at each value.
func (s *scanner) object(member func(key string) error) error {
	if !s.take('{') {
		return errJSON
	}
	if s.take('}') {
		return nil
	}
	for {
		key, err := s.text()
		if err != nil {
			return err
		}
		if !s.take(':') {
			return errJSON
		}
		if err := member(key); err != nil {
			return err
		}
		if s.take('}') {
			return nil
		}
		if !s.take(',') {
			return errJSON
		}
	}
}

// skip reads any value.
func (s *scanner) skip(depth int) error {
	if depth > maxDepth {
		return errJSONDeep
	}
	s.space()
	if s.pos == len(s.data) {
		return errJSON
	}
	switch s.data[s.pos] {
	case '{':
		return s.object(func(string) error { return s.skip(depth + 1) })
	case '[':
		s.pos++
		if s.take(']') {
			return nil
		}
		for {
			if err := s.skip(depth + 1); err != nil {
				return err
			}
			if s.take(']') {
				return nil
			}
			if !s.take(',') {
				return errJSON
			}
		}
	case '"':
		_, _, err := s.raw()
		return err
	}
	if s.literal("true") || s.literal("false") || s.literal("null") {
		return nil
	}
	start := s.pos
	for s.pos < len(s.data) {
		c := s.data[s.pos]
		if (c < '0' || c > '9') && c != '-' && c != '+' && c != '.' && c != 'e' && c != 'E' {
			break
		}
		s.pos++
	}
	if s.pos == start {
		return errJSON
	}
	return nil
}

// raw reads a string, without undoing its escapes.
func (s *scanner) raw() (raw []byte, plain bool, err error) {
	if !s.take('"') {
		return nil, false, errJSON
	}
	start := s.pos
	plain = true
	for s.pos < len(s.data) {
		switch c := s.data[s.pos]; {
		case c == '"':
			raw = s.data[start:s.pos]
			s.pos++
			return raw, plain, nil
		case c == '\\':
			plain = false
			s.pos += 2
		case c < ' ':
			return nil, false, errJSON
		default:
			plain = plain && c < utf8.RuneSelf
			s.pos++
		}
	}
	return nil, false, errJSON
}

func (s *scanner) text() (string, error) {
	raw, plain, err := s.raw()
	if err != nil {
		return "", err
	}
	if plain {
		return string(raw), nil
	}
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); {
		if raw[i] != '\\' {
			r, size := utf8.DecodeRune(raw[i:])
			out = utf8.AppendRune(out, r)
			i += size
			continue
		}
		if i++; i == len(raw) {
			return "", errJSON
		}
		c := raw[i]
		i++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, ok := hex4(raw[i:])
			if !ok {
				return "", errJSON
			}
			i += 4
			if r >= 0xd800 && r < 0xe000 {
				low := rune(-1)
				if i+1 < len(raw) && raw[i] == '\\' && raw[i+1] == 'u' {
					if l, ok := hex4(raw[i+2:]); ok && r < 0xdc00 && l >= 0xdc00 && l < 0xe000 {
						low = l
						i += 6
					}
				}
				if low < 0 {
					r = utf8.RuneError
				} else {
					r = (r-0xd800)<<10 | (low - 0xdc00) + 0x10000
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			return "", errJSON
		}
	}
	return string(out), nil
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[:4]), 16, 16)
	return rune(n), err == nil && b[0] != '+'
}

func quoteJSON(s string) string {
	const hex = "0123456789abcdef"
	out := []byte{'"'}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c < ' ':
			out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			out = append(out, c)
		}
	}
	return string(append(out, '"'))
}

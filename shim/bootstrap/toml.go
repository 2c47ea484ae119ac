package bootstrap

import "strconv"

// The options of a runtime that is not runc's come as TOML. Both verbs read the same few keys of it, so the reading is
// here, where it may cost nothing. It is a flat table that is read: what containerd's CRI plugin writes of its
// configuration, and what people write in a file for ctr.

// EachSetting calls f for each key of a TOML document that is not in a table, with the value as it is written: for
// [ParseText], [ParseBool] and [ParseID]. Keys are given as [FoldKey] has them. Values of several lines are skipped over.
func EachSetting(body string, f func(key, value string) error) error {
	for n := 1; body != ""; n++ {
		var line string
		line, body = cutLine(body)
		line = trim(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' {
			return nil // what is in tables is none of these
		}
		key, value, ok := cutKey(line)
		if !ok {
			return failure("line " + strconv.Itoa(n) + " of the TOML: no value")
		}
		if open := opens(value); open != "" {
			var skipped int
			if body, skipped = skipValue(value, body, open); skipped < 0 {
				return failure("line " + strconv.Itoa(n) + " of the TOML: a value without an end")
			}
			n += skipped
			continue
		}
		if err := f(FoldKey(key), value); err != nil {
			return wrap(key, err)
		}
	}
	return nil
}

// FoldKey is a key as it is compared: containerd's decoder makes no difference between cases, and runc's type has its names with
// underscores where TOML has them without.
func FoldKey(key string) string {
	out := make([]byte, 0, len(key))
	for i := range len(key) {
		switch c := key[i]; {
		case c == '_':
		case 'A' <= c && c <= 'Z':
			out = append(out, c+'a'-'A')
		default:
			out = append(out, c)
		}
	}
	return string(out)
}

// ParseText reads a string of one line, basic or literal.
func ParseText(v string) (string, error) {
	if len(v) > 1 && v[0] == '\'' {
		for i := 1; i < len(v); i++ {
			if v[i] == '\'' {
				return v[1:i], rest(v[i+1:])
			}
		}
		return "", strconv.ErrSyntax
	}
	quoted, err := strconv.QuotedPrefix(v)
	if err != nil || quoted[0] != '"' {
		return "", strconv.ErrSyntax
	}
	if err := rest(v[len(quoted):]); err != nil {
		return "", err
	}
	return strconv.Unquote(quoted)
}

// ParseBool reads true or false.
func ParseBool(v string) (bool, error) {
	switch bare(v) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, strconv.ErrSyntax
}

// ParseID reads an integer of 32 bits without a sign.
func ParseID(v string) (uint32, error) {
	digits := make([]byte, 0, len(v))
	for _, c := range []byte(bare(v)) {
		if c != '_' {
			digits = append(digits, c)
		}
	}
	n, err := strconv.ParseUint(string(digits), 0, 32)
	return uint32(n), err
}

// rest is what may stand behind a value: nothing, or a comment.
func rest(v string) error {
	if v = trim(v); v != "" && v[0] != '#' {
		return strconv.ErrSyntax
	}
	return nil
}

// bare is a value that is no string, without the comment behind it.
func bare(v string) string {
	for i := range len(v) {
		if v[i] == '#' {
			v = v[:i]
			break
		}
	}
	return trim(v)
}

func cutLine(s string) (line, after string) {
	for i := range len(s) {
		if s[i] == '\n' {
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

func trim(s string) string {
	blank := func(c byte) bool { return c == ' ' || c == '\t' || c == '\r' }
	for len(s) > 0 && blank(s[0]) {
		s = s[1:]
	}
	for len(s) > 0 && blank(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

func cutKey(line string) (key, value string, ok bool) {
	for i := range len(line) {
		if line[i] == '=' {
			key = trim(line[:i])
			if n := len(key); n > 1 && (key[0] == '"' || key[0] == '\'') && key[n-1] == key[0] {
				key = key[1 : n-1]
			}
			value = trim(line[i+1:])
			return key, value, key != "" && value != ""
		}
	}
	return "", "", false
}

// opens says what ends a value that may go on on the next line: of an array or an inline table its bracket, of a long string its quotes.
func opens(v string) string {
	switch {
	case hasPrefix(v, `"""`), hasPrefix(v, "'''"):
		return v[:3]
	case v[0] == '[':
		return "]"
	case v[0] == '{':
		return "}"
	}
	return ""
}

// skipValue finds what is behind a value that begins in v and may go on in the lines of body; lines is -1 if it has no end.
func skipValue(v, body, end string) (after string, lines int) {
	if len(end) == 3 {
		for v = v[3:]; ; lines++ {
			for i := 0; i+3 <= len(v); i++ {
				if v[i] == '\\' && end[0] == '"' {
					i++
				} else if v[i:i+3] == end {
					return body, lines
				}
			}
			if body == "" {
				return "", -1
			}
			v, body = cutLine(body)
		}
	}
	for depth := 0; ; lines++ {
		for i := 0; i < len(v) && v[i] != '#'; i++ {
			switch c := v[i]; c {
			case '[', '{':
				depth++
			case ']', '}':
				depth--
			case '"', '\'':
				for i++; i < len(v) && v[i] != c; i++ {
					if v[i] == '\\' && c == '"' {
						i++
					}
				}
			}
		}
		if depth <= 0 {
			return body, lines
		}
		if body == "" {
			return "", -1
		}
		v, body = cutLine(body)
	}
}

package rsys

import "testing"

func TestServerCodeIsSmall(t *testing.T) {
	code := ServerCode()
	if n := len(code); n < 200 || n > 2048 {
		t.Errorf("the server has %d bytes", n)
	}
	t.Logf("%d bytes", len(code))
}

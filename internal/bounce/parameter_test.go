package bounce

import "testing"

func TestParameters(t *testing.T) {
	for text, want := range map[string]bool{"NEVER": true, "never": true, "SUCCESS,delay,Failure": true, "": false, "NEVER,SUCCESS": false, "SUCCESS,": false, "X": false, "SUCCESS,FAILURE,DELAY,DELAY": false} {
		if ValidNotify(text) != want {
			t.Errorf("NOTIFY %q: %v", text, !want)
		}
	}
	for text, want := range map[string]bool{"QQ314159": true, "a+2Bb": true, "": false, "a+2b": false, "a=b": false, "a\r\nb": false, "a b": false, "+2": false, "é": false} {
		if ValidEnvID(text) != want {
			t.Errorf("ENVID %q: %v", text, !want)
		}
	}
	for text, want := range map[string]bool{"rfc822;a@b": true, "rfc822;": false, ";x": false, "a@b": false, "rfc822;a b": false, "rfc822;a\r\nDATA": false, "rfc822;é": false, "r f;x": false} {
		if ValidOrcpt(text, false) != want {
			t.Errorf("ORCPT %q: %v", text, !want)
		}
	}
	if !ValidOrcpt("utf-8;é@b", true) || ValidOrcpt("utf-8;é\n@b", true) {
		t.Error("ORCPT in UTF-8")
	}
	for in, want := range map[string]string{"plain": "plain", "a b+c=d\n": "a+20b+2Bc+3Dd+0A"} {
		if got := Xtext(in); got != want || fromXtext(got) != in {
			t.Errorf("%q: %q, back %q", in, got, fromXtext(got))
		}
	}
}

package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// oldLetters are the options that the manual pages of IndiMail's programs have, and their usage texts. -V, which some of these print and getopt refuses,
// is not among them; nor are those that show the usage.
func oldLetters() map[string]string {
	return map[string]string{
		"vadddomain": "vBlqbEudigROftTerhmCSIDHUPpsc", "vdeldomain": "cTv", "vdeluser": "v", "vadduser": "vqlcbBdrehCmSIMHi", "vpasswd": "vrehmCSI",
		"vmoduser": "vnqcPehmCSIDltudpwsibroa0123x", "vmoddomain": "vlHfh", "vlimit": "vsDentNQMqmPAFRLgTpafrluoxz", "valias": "vmsSudi",
		"vgroup": "anvcqerhmCSIHMiduo", "vatrn": "vsdiu", "vbulletin": "VfenchsSa", "vdominfo": "vanugdbtlp", "vserverinfo": "vupPsmdaDMS", "install_tables": "",
		"authtest": "sm", "qmail-qread": "alrtc", "vipmap": "vdispu", "vuserinfo": "anpugcdqlf", "incrypt": "hS", "mgmtpass": "uapi", "vpriv": "sdimDa",
		"inquerytest": "vqi", "vfstab": "vdiuolnqmsb", "vdeloldusers": "daustmcpirfv", "qmail-rm": "eidrvnpqsyXfx", "drate": "sulcRtCfdraDU", "qtop": "ciq", "queue-fix": "iNsrmvb", "qmta-send": "dlbrcfs",
	}
}

// ask gives the error of an option of a program, which is not run: behind the option stands one that no program has.
func ask(name string, letter rune) string {
	var errs bytes.Buffer
	app := &App{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &errs}
	if app.programs()[name]([]string{"-" + string(letter) + "\x01", "-\x01"}) == 0 {
		return "it ran"
	}
	return errs.String()
}

// TestOldLetters: each of IndiMail's options does something or is refused with the reason, and no other letter is known as refused.
func TestOldLetters(t *testing.T) {
	t.Setenv("INDIGO_DATA", t.TempDir())
	for name, letters := range oldLetters() {
		for _, letter := range letters {
			said := ask(name, letter)
			want := "unknown option -\x01"
			if why := instead(name, byte(letter)); why != "" {
				want = fmt.Sprintf("option -%c has no effect in Indigo: %s; nothing was done", letter, why)
			}
			if said != name+": "+want+"\n" {
				t.Errorf("%s -%c: %q, not %q", name, letter, said, want)
			}
		}
	}
	for name, all := range refusals() {
		for _, one := range all {
			for _, letter := range one.letters {
				if one.why == "" || !strings.ContainsRune(oldLetters()[name], letter) {
					t.Errorf("%s -%c is refused (%q) and none of IndiMail's options", name, letter, one.why)
				}
			}
		}
	}
	for name, letters := range map[string]string{
		"vadddomain": "ao", "vdeldomain": "ap", "vdeluser": "ad", "vadduser": "aDfgknostT", "vpasswd": "Di", "vlimit": "S", "vmoddomain": "b", "vmoduser": "TMH",
		"vatrn": "nV", "install_tables": "d", "qmail-rm": "E", "qtop": "n", "queue-fix": "p",
	} {
		for _, letter := range letters {
			if said := ask(name, letter); said != fmt.Sprintf("%s: unknown option -%c\n", name, letter) {
				t.Errorf("%s -%c, which IndiMail has not: %q", name, letter, said)
			}
		}
	}
}

// Package archtest enforces the plan of the house (docs/architecture.md): its test reads the imports of every package
// and fails when one reaches up, or sideways between doors. It has no code of its own.
package archtest

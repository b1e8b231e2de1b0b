package config

import (
	"fmt"
	"strings"
)

// sectionTitles names the sections of the reference, in its order.
var sectionTitles = []struct{ section, title string }{
	{"2.1", "Services and URLs"},
	{"2.2", "Listeners, TLS and certificates"},
	{"2.3", "Certificates by ACME"},
	{"2.4", "Secrets and keys"},
	{"2.5", "Cookies"},
	{"2.6", "Identity providers"},
	{"2.7", "Bearer tokens and identity headers"},
	{"2.8", "Records"},
	{"2.9", "Internal RPC"},
	{"2.10", "Client certificates"},
	{"2.11", "Timeouts"},
	{"2.12", "Headers and request hygiene"},
	{"2.13", "Logs"},
	{"2.14", "Metrics, traces, debugging, health"},
	{"2.15", "DNS and upstream connections"},
	{"2.16", "Features, flags, branding, routes"},
	{"ours", "Administration"},
	{"3.1", "Route: from"},
	{"3.2", "Route: to, redirect, response"},
	{"3.3", "Route: matching"},
	{"3.5", "Route: rewriting"},
	{"3.6", "Route: headers"},
	{"3.7", "Route: TLS"},
	{"3.8", "Route: load balancing and health"},
	{"3.9", "Route: timeouts and upgrades"},
	{"3.10", "Route: access"},
	{"3.11", "Route: identity, credentials, portal"},
	{"3.12", "Route: MCP, SSH, tunnels, recording"},
	{"route", "Route: trying policies"},
}

// Reference is the page of all settings in Markdown, made from the
// declarations.
func Reference() string {
	var b strings.Builder
	b.WriteString(`# Configuration reference

This page is generated from the declarations that parse the configuration; do not edit it.

A configuration is a YAML, JSON or TOML document (` + "`--config FILE`" + `), environment variables, or both;
variables win. Keys match in any case. *Status* tells whether a key acts, is accepted: understood and checked,
but without effect yet, or is ignored: taken from existing files, but there is nothing here that it could change. A key marked *restricts* stops the start while it does not act.

`)
	bySection := map[string][]Key{}
	for _, k := range Keys() {
		section := k.Section
		if section == "ours" && strings.HasPrefix(k.Name, "routes[]") {
			section = "route"
		}
		bySection[section] = append(bySection[section], k)
	}
	for _, s := range sectionTitles {
		keys := bySection[s.section]
		if len(keys) == 0 {
			continue
		}
		fmt.Fprintf(&b, "## %s\n\n|Key|Environment|Type|Default|Status|What it does|\n|---|---|---|---|---|---|\n", s.title)
		for _, k := range keys {
			b.WriteString(k.row())
		}
		b.WriteString("\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func (k Key) row() string {
	code := func(s string) string {
		if s == "" {
			return ""
		}
		return "`" + strings.ReplaceAll(s, "|", "\\|") + "`"
	}
	status := k.Status
	if k.Narrows && k.Status != "acts" {
		status += ", restricts"
	}
	doc := strings.ReplaceAll(k.Doc, "|", "\\|")
	doc = strings.NewReplacer("<", "&lt;", ">", "&gt;", "*", "\\*", "$", "\\$").Replace(doc)
	if len(k.Values) > 0 {
		doc += " Values: " + strings.Join(k.Values, ", ") + "."
	}
	if k.Deprecated != "" {
		doc += " Old; use " + k.Deprecated + "."
	}
	return fmt.Sprintf("|%s|%s|%s|%s|%s|%s|\n", code(k.Name), code(k.Env), k.Type, code(k.Default), status, doc)
}

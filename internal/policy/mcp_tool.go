package policy

import "go.yaml.in/yaml/v3"

var mcpTool = &Criterion{
	Name:    "mcp_tool",
	Doc:     "True if the request is an MCP tools/call of a tool whose name matches. Use it under deny: under allow it shuts out every other method.",
	Value:   "string matcher",
	Matcher: stringKind,
	Example: `
settings: {route: {mcp_server: true}}
policy:
  - allow: {or: [authenticated_user: true]}
    deny: {and: [mcp_tool: {starts_with: admin_}]}
defaults: {user: {id: ada}, request: {method: POST}}
cases:
  - {name: a tool, mcp: {method: tools/call, tool: query}, expect: allow}
  - {name: a forbidden one, mcp: {method: tools/call, tool: admin_reset}, expect: deny, status: 200}
  - {name: listing them, mcp: {method: tools/list}, expect: allow}
`,
	Compile: compileMCPTool,
}

func compileMCPTool(s *Scope, n *yaml.Node) test {
	match := s.stringMatcher(n, "")
	if match == nil {
		return nil
	}
	if s.Action == "allow" {
		s.Warnf(s.Key, "", "mcp_tool under allow shuts out tools/list and every other method; put it under deny")
	}
	return func(in *Input) verdict {
		if in.MCP == nil || in.MCP.Method != "tools/call" {
			return verdict{why: ReasonMCPNotAToolCall.set()}
		}
		return pass(match(in.MCP.Tool), ReasonMCPToolMatch.set(), ReasonMCPToolNoMatch.set())
	}
}

package policy

import "go.yaml.in/yaml/v3"

var mcpTool = &Criterion{
	Name:    "mcp_tool",
	Doc:     "True if the request is an MCP tools/call of a tool whose name matches. Use it under deny: under allow it shuts out every other method.",
	Value:   "string matcher",
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

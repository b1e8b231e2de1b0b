package proxy

// affinity is what keeps a visitor with one endpoint, where the policy of the
// route does that: the session, else the client's address (configuration.md §3.8).
func (c *call) affinity() string {
	if !c.target.Upstream.WantsAffinity() {
		return ""
	}
	if who := c.decision.Caller; who != nil && who.ID != "" {
		return who.ID
	}
	return c.view.peer.ClientIP.String()
}

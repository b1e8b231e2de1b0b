package server

import (
	"reflect"
	"strings"

	"postern/internal/config"
)

// needsRestart names the settings that a change of configuration touches and
// that only count from the next start: what the process opened once.
func needsRestart(before, after *config.Config) []string {
	var out []string
	b, a := &before.Telemetry, &after.Telemetry
	for _, x := range []struct {
		name        string
		before, now any
	}{
		{"health_check_systemd_disabled", b.HealthCheckSystemdDisabled, a.HealthCheckSystemdDisabled},
		{"control_address", before.Control.ControlAddress, after.Control.ControlAddress},
		{"data_dir", before.Store.DataDir, after.Store.DataDir},
		{"databroker_storage_type", before.Store.Type, after.Store.Type},
		{"databroker_storage_connection_string", before.Store.ConnectionString, after.Store.ConnectionString},
		{"max_stale", before.Store.MaxStale, after.Store.MaxStale},
	} {
		if !reflect.DeepEqual(x.before, x.now) {
			out = append(out, x.name)
		}
	}
	return out
}

// tellRestart tells once per change which of its settings wait for a restart.
func (s *Server) tellRestart(before, after *config.Config) {
	if names := needsRestart(before, after); len(names) > 0 {
		s.log.Warn("these settings count from the next start: "+strings.Join(names, ", "), "hint", "restart the process")
	}
}

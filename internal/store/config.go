package store

import "time"

// Config holds the settings of where records live. The tags are the
// declaration that package config parses and documents.
type Config struct {
	_ struct{} `section:"2.8"`

	Type                 string        `key:"databroker_storage_type" default:"memory" enum:"memory|file|postgres" status:"acts" doc:"Where records live: memory, file or postgres (not yet served)."`
	ConnectionString     string        `key:"databroker_storage_connection_string" secret:"true" status:"acts" doc:"file:///directory for file; a libpq connection string or URI for postgres."`
	ConnectionStringFile string        `key:"databroker_storage_connection_string_file" form:"file" status:"acts" doc:"File holding the connection string; beats databroker_storage_connection_string."`
	DataDir              string        `key:"data_dir" status:"acts" doc:"Directory of what this process keeps: records of the file backend, its made secret, the control socket. $XDG_DATA_HOME/postern if unset."`
	MaxStale             time.Duration `key:"max_stale" default:"10s" status:"acts" doc:"How old the local copy of records may be before decisions are refused. Read at the start of the process."`

	ClusterNodes    []ClusterNode `key:"databroker_cluster_nodes" status:"accepted" doc:"Nodes of a databroker cluster, the same on all of them."`
	ClusterNodeID   string        `key:"databroker_cluster_node_id" status:"accepted" doc:"Which of the cluster nodes this one is."`
	ClusterLeaderID string        `key:"databroker_cluster_leader_id" status:"accepted" doc:"Fixes the leader among the cluster nodes, without election."`
	RaftBindAddress string        `key:"databroker_raft_bind_address" status:"accepted" doc:"Listener, host:port, for leader election."`
}

// ClusterNode is one node of a databroker cluster.
type ClusterNode struct {
	ID          string `key:"id" status:"accepted" doc:"Name of the node."`
	GRPCAddress string `key:"grpc_address" status:"accepted" doc:"URL of the node's databroker."`
	RaftAddress string `key:"raft_address" status:"accepted" doc:"host:port of the node's election listener."`
}

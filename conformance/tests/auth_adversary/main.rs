//! Mutual authentication and those who would get around it, played with real nodes. Needs root and the kernel.
//!
//! The cases of the list of threats that concern identity, time and authentication, and where each is played. Functions
//! without a file are of this test; `nodes` is `auth_nodes.rs`, `one` is `auth.rs`, `verify` is
//! `certs/src/verify/tests.rs`, `ca` is
//! `certs/tests/enrol.rs`, `messages`, `simulation` and `driver` are those of
//! `auth-agent/tests`.
//!
//! | case | what is tried | played by |
//! |---|---|---|
//! | T41 | an address is another's at once | `flows::whoever_gets_a_proven_clients_address_gets_nothing_with_it`, `flows::whoever_gets_a_proven_servers_address_is_not_taken_for_it`, nodes `a_server_that_ends_takes_its_connections_along_and_its_address_rests`, `simulation` |
//! | T42 | another label on a live flow | nodes `a_relabelled_client_loses_its_connections_on_both_nodes`, `another_account_is_another_identity`; `ends::a_withdrawal_breaks_off_both_ends_of_those_who_speak_and_those_who_do_not`, `ends::who_is_relabelled_while_nobody_looks_loses_what_says_nothing_too`, `switching::who_is_relabelled_while_others_are_waited_for_is_dead_before_they_are_through` |
//! | T43 | traffic while an endpoint begins or ends, with a dead agent, after a restart | `flows::with_the_agent_dead_who_is_proven_goes_on_and_nobody_else_begins`, `paths::nothing_passes_while_agents_go_and_come_back`, `flows::whoever_gets_a_proven_servers_address_is_not_taken_for_it`, one `who_is_gone_takes_its_connections_along`, `processes_outlive_the_agent_and_the_next_takes_them_over` |
//! | T44 | a node is cut off, and an address is reused behind it | `flows::whoever_gets_the_address_behind_a_partition_gets_nothing_with_it`, `flows::a_node_whose_authority_is_stale_takes_nobody_for_who_had_the_address`, nodes `a_partition_ends_what_is_live_after_the_grace_and_heals` |
//! | T45 | a mark for another port, protocol, direction; an address of another node | `flows::a_mark_opens_no_other_port_protocol_or_direction`, `compromise::claims_to_what_is_anothers_are_refused_with_the_files_name` |
//! | T46 | the numbers of a connection that has ended | `flows::a_connection_that_has_ended_leaves_nothing_for_the_next_with_its_numbers` |
//! | T47 | garbage, replay, reflection | `compromise::garbage_reflection_and_callers_without_a_certificate_get_no_session`, `replay::what_another_node_attests_is_nothing_in_a_members_session`, `replay::what_was_said_in_a_session_proves_nothing_in_a_later_one`, messages `our_own_session_reflected_is_closed`, `a_replayed_number_closes_the_session` |
//! | T48 | a victim's leaf behind one's own; a shuffled chain | `door::no_chain_but_a_nodes_own_opens_a_session`, verify `the_id_is_the_end_entitys_whatever_is_appended`, `a_workload_cannot_issue_for_another` |
//! | T49 | no, two, odd URI names | `door::no_chain_but_a_nodes_own_opens_a_session`, verify `exactly_one_uri_name_of_whatever_scheme`, `the_uri_must_be_a_canonical_spiffe_id_with_a_path`, `names_of_other_types_are_allowed_beside_the_id`, `an_id_counts_nowhere_but_in_the_uri_name`, `a_uri_that_is_not_ascii_is_no_name_and_counts_as_one` |
//! | T50 | a foreign trust domain | `door::no_chain_but_a_nodes_own_opens_a_session`, verify `only_roots_of_the_ids_own_trust_domain_count` |
//! | T51 | expired, not yet valid, clocks that jump, suspend | `ends::a_certificate_that_nobody_renews_takes_its_connections_along`, `door::no_chain_but_a_nodes_own_opens_a_session`, verify `time_is_kept_to_the_second_by_every_certificate`, `a_root_counts_no_longer_than_it_says`; simulation `after_a_suspend_longer_than_the_grace_everything_is_proven_anew_without_a_packet_or_a_plan`, driver `a_clock_that_is_set_ends_what_is_not_valid_by_it_and_nothing_else` |
//! | T52 | rotation; a root is removed | `faults::a_rotation_costs_no_packet`, `faults::a_root_that_is_removed_takes_marks_and_connections_along` |
//! | T53 | resumption, early data | `door::nobody_comes_back_by_a_ticket`, `certs/src/tls/tests.rs` `nothing_is_resumed` |
//! | T54 | an initiator without its responder's word | `half::half_a_proof_marks_nothing`, messages `an_accept_before_our_side_has_verified_closes_the_session`, `a_bind_without_a_proof_marks_nothing` |
//! | T55 | floods of handshakes and held packets, slow peers | `flood::a_hold_that_is_full_disturbs_no_flow_and_keeps_nobody_out`, `flood::without_room_a_call_asks_by_itself_and_its_connection_opens_soon`, `faults::a_flood_of_first_packets_delays_no_other_and_no_withdrawal`, messages `a_flood_of_handshakes_is_refused_beyond_its_bound`, `a_pair_holds_no_more_packets_than_its_bound`; driver `a_crowd_that_says_nothing_keeps_no_node_out`; ca `peers_that_say_nothing_hold_no_others_up_and_are_cut_off` |
//! | T56 | a node asks for a workload that is not its own | `compromise::a_foreign_certificate_is_refused_and_the_log_names_the_node`, ca `a_node_gets_no_certificate_of_anothers_workload_or_of_the_mesh_itself` |
//! | T57 | names that would be patterns or paths | `mesh/src/spiffe.rs`, its tests: IDs are built and compared, never matched; verify `an_id_is_no_pattern_and_no_prefix_of_another`; `control/src/plan/tests/authentication.rs` `who_must_prove_himself_is_compared_letter_by_letter` |
//! | T58 | a withdrawal under pressure | `faults::a_flood_of_first_packets_delays_no_other_and_no_withdrawal`, `simulation` |
//! | T59 | writing the pinned maps | `sandbox.rs` `root_inside_cannot_reach_the_host`, `capabilities_are_a_containers_less_two_and_some_are_never_given` |
//! | T60 | a workload at the port of an auth-agent or the CA | nodes `no_workload_reaches_an_auth_agent_or_the_ca` |
//!
//! Fourteen faults of an earlier design of this kind:
//!
//! | fault | played by |
//! |---|---|
//! | 1 the first packet is lost | one `the_first_connection_waits_for_its_proof_and_loses_no_packet`, nodes `with_nothing_proven_ahead_each_first_packet_waits_and_goes_on`: the probe waits for less than a second |
//! | 2 keyed by identities and nodes | `flows::a_second_workload_of_the_same_labels_has_a_mark_of_its_own` |
//! | 3 not bound to traffic | a documented loser: `compromise::a_raw_packet_on_the_underlay_is_heard_while_the_mark_lives_and_not_after` |
//! | 4 one-sided | `half::half_a_proof_marks_nothing`, `impostor::a_certificate_of_another_workload_of_its_node_is_refused_and_named`, messages as for T54, `a_peer_proves_only_ids_that_are_here_and_only_where_a_policy_asks` |
//! | 5 a certificate is substituted | `impostor::a_certificate_of_another_workload_of_its_node_is_refused_and_named`, verify `the_id_is_the_end_entitys_whatever_is_appended` |
//! | 6 every node holds every key | `wire::no_key_is_where_a_workload_or_another_node_could_read_it`, `compromise::a_foreign_certificate_is_refused_and_the_log_names_the_node` |
//! | 7 weak withdrawal | `ends`, each; nodes `a_relabelled_client_loses_its_connections_on_both_nodes`, `faults::a_root_that_is_removed_takes_marks_and_connections_along` |
//! | 8 no end of connections | `ends`, each; the others of 7 assert that the socket hears of it |
//! | 9 a stampede at rotation | `faults::a_rotation_costs_no_packet`, messages `a_thousand_pairs_are_proven_at_a_bounded_rate_and_renewed_apart_from_one_another` |
//! | 10 IPv6 | nodes `nodes_that_know_one_another_by_ipv6_alone_prove_their_workloads_of_both_families`, `who_is_proven_gets_through_at_once_from_both_nodes_by_every_protocol`, `flows::a_mark_opens_no_other_port_protocol_or_direction` |
//! | 11 silent failures | messages `packets_for_a_peer_that_is_not_there_are_lost_in_their_time_and_refused_for_a_while`, `a_packet_to_nobody_waits_for_a_plan_and_is_lost_without_one`; ca `files_of_no_use_leave_what_was_in_force` |
//! | 12 no negative cache, no limit per peer | `flood::without_room_a_call_asks_by_itself_and_its_connection_opens_soon`, messages `packets_for_a_peer_that_is_not_there_are_lost_in_their_time_and_refused_for_a_while`, `a_flood_of_handshakes_is_refused_beyond_its_bound` |
//! | 13 an identity is a number | nodes `another_account_is_another_identity`, one `the_first_connection_waits_for_its_proof_and_loses_no_packet` (SPIFFE IDs in `auth pairs`) |
//! | 14 thin tests | this table |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario that cannot go on has failed"
)]

mod compromise;
mod door;
mod ends;
mod faults;
mod flood;
mod flows;
mod half;
mod impostor;
mod member;
mod paths;
mod replay;
mod scene;
mod switching;
mod wire;

/* status.c - see status.h. */
#include "agent/status.h"

#include <string.h>

static const char *state_name(const struct epoch_view *v)
{
	if (v->lost)
		return "lost";
	switch (v->state) {
	case EPOCH_EMPTY: return "empty";
	case EPOCH_GATHER: return v->quorate ? "recovering" : "no quorum";
	case EPOCH_PLACING: return "recovering";
	case EPOCH_RUNNING: return "running";
	}
	return "?";
}

static json_t *hosts_json(const struct agent *a, const struct epoch_view *v)
{
	json_t *hosts = json_array();
	for (uint32_t h = 1; h <= VCFT_HOST_MAX; h++) {
		struct host_id id = { h };
		if (!host_in(a->members, id))
			continue;
		const char *state = v->leader.n == h ? "leader" : host_in(v->participants, id) ? "member" : "joining";
		json_array_append_new(hosts, json_pack("{s:s, s:s, s:s, s:o}", "name", a->peers[h].known ? a->peers[h].name : "?", "state",
		                                       state, "address", a->peers[h].address, "short",
		                                       shortages_names(h == a->self.n ? shortages_mask(a) : a->peers[h].shortages)));
	}
	for (unsigned i = 0; a->cluster && i < a->cluster->host_count; i++) {
		bool here = false;
		for (uint32_t h = 1; h <= VCFT_HOST_MAX; h++)
			here = here || (host_in(a->members, (struct host_id){ h }) && !strcmp(a->peers[h].name, a->cluster->hosts[i].name));
		if (!here)
			json_array_append_new(hosts, json_pack("{s:s, s:s, s:[]}", "name", a->cluster->hosts[i].name, "state", "lost", "short"));
	}
	return hosts;
}

static json_t *last_json(const struct message_stats *s, struct epoch_id epoch)
{
	if (epoch.n == 0)
		return json_null();
	return json_pack("{s:I, s:f, s:I, s:I, s:I, s:I, s:f}", "epoch", (json_int_t)epoch.n, "pause_us", (double)s->pause / NSEC_PER_USEC,
	                 "dirty_pages", (json_int_t)s->dirty_pages, "disk_blocks", (json_int_t)s->disk_blocks, "raw_bytes",
	                 (json_int_t)s->raw_bytes, "sent_bytes", (json_int_t)s->sent_bytes, "commit_us",
	                 (double)s->commit / NSEC_PER_USEC);
}

/* How a VM stands while the cluster runs. */
static const char *stand_name(const struct agent *a, const struct epoch_view *v, uint32_t i)
{
	static const char *const names[VM_STAND_END] = { "running", "waits for disk space", "off" };
	return v->state == EPOCH_RUNNING && !v->lost ? names[a->stats[i].stand] : state_name(v);
}

static json_t *memory_json(const struct agent *a)
{
	struct sink_memory m;
	sink_memory(a->sink, &m);
	return json_pack("{s:I, s:I, s:I}", "image_bytes", (json_int_t)m.image_bytes, "stage_bytes", (json_int_t)m.stage_bytes, "limit_bytes",
	                 (json_int_t)a->config->backup_memory);
}

static json_t *network_json(const struct agent *a)
{
	struct net_stats n;
	net_stats(a->net, &n);
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "frames", (json_int_t)n.frames, "released", (json_int_t)n.released, "held_frames",
	                 (json_int_t)n.held_frames, "held_bytes", (json_int_t)n.held_bytes, "held_limit", (json_int_t)a->config->held_memory, "dropped",
	                 (json_int_t)n.dropped, "dropped_full", (json_int_t)n.dropped_full, "dropped_down", (json_int_t)n.dropped_down);
}

static json_t *vm_json(const struct agent *a, const struct epoch_view *v, uint32_t i)
{
	const struct config_vm *vm = &a->cluster->vms[i];
	const struct message_placement *p = i < v->vm_count ? &v->placement[i] : NULL;
	json_t *backups = json_array();
	for (uint32_t h = 1; p && h <= VCFT_HOST_MAX; h++)
		if (host_in(p->backups, (struct host_id){ h }))
			json_array_append_new(backups, json_string(a->peers[h].name));
	return json_pack("{s:s, s:s?, s:o, s:s, s:I, s:o}", "name", vm->name, "host", p && p->host.n ? a->peers[p->host.n].name : NULL,
	                 "backups", backups, "state", stand_name(a, v, i), "memory_bytes", (json_int_t)vm->memory_bytes, "last",
	                 last_json(&a->stats[i], a->stats_epoch[i]));
}

json_t *status_json(const struct agent *a)
{
	struct epoch_view v;
	epoch_view(a->core, &v);
	json_t *vms = json_array();
	for (uint32_t i = 0; a->cluster && i < a->cluster->vm_count; i++)
		json_array_append_new(vms, vm_json(a, &v, i));
	return json_pack("{s:s?, s:s, s:s, s:I, s:I, s:I, s:b, s:b, s:o, s:o, s:s?, s:o, s:o, s:o, s:f, s:f}", "cluster", a->cluster ? a->cluster->name : NULL, "host",
	                 a->config->name, "state", state_name(&v), "generation", (json_int_t)v.generation.n, "committed",
	                 (json_int_t)v.committed.n, "released", (json_int_t)v.released.n, "protected", v.protected_, "quorate", v.quorate,
	                 "hosts", hosts_json(a, &v), "vms", vms, "trouble", a->trouble,
	                 "shortages", shortages_json(a), "memory", memory_json(a), "network", network_json(a), "interval_ms",
	                 a->cluster ? (double)a->cluster->interval / NSEC_PER_MSEC : 0.0, "commit_ms", (double)a->commit_time / NSEC_PER_MSEC);
}

/* prepare.h - make the raw bases of the cluster's disks, off the loop; see disk/disk.h. */
#ifndef VCFT_AGENT_PREPARE_H
#define VCFT_AGENT_PREPARE_H

#include "agent/post.h"
#include "base/config.h"

/* For each VM the bases of its disks (NULL-terminated) and their sizes in blocks; bases[v] NULL: one cannot be used here, why[v] says it. */
struct prepared {
	unsigned vm_count;
	char **bases[VCFT_VM_MAX];
	uint64_t blocks[VCFT_VM_MAX][VCFT_DISK_MAX];
	char *why[VCFT_VM_MAX];
};

typedef void (*prepare_done)(struct prepared *prepared, void *user);

/* done is called on the loop's thread, unless box is closed before; prepared is then the caller's: prepared_free(). cluster is borrowed for the
 * call only. */
void prepare_start(const struct config_cluster *cluster, const char *cache_dir, struct post_box *box, prepare_done done, void *user);
void prepared_free(struct prepared *prepared);

#endif

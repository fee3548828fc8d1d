/* bed.h - a VM without a hypervisor for the tests of store/: memory and disks as plain arrays (the oracle), a shadow, a source, and backups.
 *
 * The oracle keeps each region twice: `live` as the guest sees it and `committed` as it was at the last committed checkpoint; for disks also which
 * blocks were ever written. No cleverness: full copies, compared byte by byte. */
#ifndef BED_H
#define BED_H

#include "store/store.h"

#define BED_BACKUPS 3

struct bed_region {
	uint64_t pages;
	uint8_t *live, *committed, *captured;
	bool *live_has, *committed_has;      /* disks: written at least once */
	bool *dirty;                         /* since the last commit */
	/* the epoch in flight */
	size_t count; uint64_t *index; const uint8_t **data;
};

struct bed_backup { char *dir; struct sink *sink; struct tls_credentials *credentials; uint16_t port; };

struct bed {
	char *dir;
	unsigned regions;
	struct bed_region region[STORE_REGION_MAX];
	struct image *shadow;
	struct source *source;
	struct tls_credentials *credentials;
	struct bed_backup backup[BED_BACKUPS];
	struct generation generation;
	struct epoch_id committed, last;
	uint64_t ram_hash[2];
	char devices[64], record[64];
	bool wrong_hash, no_hash;
	gint verify_failures;
	/* stored() */
	GMutex lock; GCond changed;
	unsigned stored_count;
	struct epoch_id stored_epoch;
	bool stored_ok;
	host_mask stored_complete, stored_failed;
	struct source_stats stats;
	char why[256];
};

struct bed_options {
	unsigned disks, backups;
	uint64_t ram_pages, disk_blocks;
	size_t fill_bytes, stage_bytes, memory_bytes;
	unsigned timeout_ms;
	uint64_t rate_least;
	const char *dir;      /* NULL: made */
};

struct bed *bed_new(const struct bed_options *options);
void bed_free(struct bed *bed);

/* The guest writes. kind: 0 a few bytes, 1 all random, 2 zero, 3 the same again. */
void bed_write(struct bed *bed, unsigned region, uint64_t page, unsigned kind);
void bed_write_some(struct bed *bed, unsigned pages);

/* source_set_backups() with the backups of mask (bit n: backup n). */
void bed_set_backups(struct bed *bed, unsigned mask, unsigned complete);
/* Capture and send the next epoch; returns its number. */
struct epoch_id bed_send(struct bed *bed);
void bed_record(struct bed *bed, struct epoch_id r);
/* Wait for stored(r); returns ok. */
bool bed_wait(struct bed *bed, struct epoch_id r);
/* Commit r at the source and, for each bit of mask, at that backup. */
void bed_commit_source(struct bed *bed, struct epoch_id r);
void bed_commit(struct bed *bed, struct epoch_id r);
void bed_abort(struct bed *bed, struct epoch_id r);
/* send, record, wait, commit: must work. */
struct epoch_id bed_epoch(struct bed *bed);
/* A new generation at the committed epoch, on all sinks. Returns the backups (bits) whose image is complete there. */
unsigned bed_recover(struct bed *bed);

/* The image of backup n equals the oracle's committed state, bit by bit; so does the shadow. */
void bed_check_image(struct bed *bed, unsigned n);
void bed_check_files(struct bed *bed, const char *dir);
void bed_check_shadow(struct bed *bed);

struct host_id bed_host(unsigned n);
/* NULL unless VCFT_TEST_TLS is in the environment: then all streams are under TLS. */
struct tls_credentials *bed_credentials(struct host_id host);
void bed_remove_tree(const char *dir);
char *bed_temp(void);
uint64_t bed_random(void);

/* TCP without the store's help. */
int bed_listen(uint16_t *ret_port);
int bed_connect(uint16_t port);
bool bed_send_all(int fd, const void *data, size_t n);
/* Reads up to n bytes until the end or ms without any; returns how many. */
size_t bed_receive(int fd, void *out, size_t n, int ms);

#endif

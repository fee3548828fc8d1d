/* bed.c - see bed.h. */
#include "bed.h"

#include "base/sum.h"

#include "../pki-test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* From GLib's seed, so that `--seed` does the same again. */
uint64_t bed_random(void)
{
	static uint64_t random_state;
	if (!random_state)
		random_state = 1 + (uint64_t)(uint32_t)g_test_rand_int();
	uint64_t z = random_state += 0x9e3779b97f4a7c15u;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

struct host_id bed_host(unsigned n) { return (struct host_id){ n + 2 }; }

char *bed_temp(void)
{
	char *dir = g_strdup(access("/dev/shm", W_OK) == 0 ? "/dev/shm/vcft-store-XXXXXX" : "/tmp/vcft-store-XXXXXX");
	g_assert_nonnull(g_mkdtemp(dir));
	return dir;
}

void bed_remove_tree(const char *path)
{
	GDir *d = g_dir_open(path, 0, NULL);
	for (const char *name; d && (name = g_dir_read_name(d));) {
		g_autofree char *child = g_build_filename(path, name, NULL);
		bed_remove_tree(child);
	}
	if (d)
		g_dir_close(d);
	g_remove(path);
}

/* ---- life ---- */
static void fill_spec(const struct bed *bed, const char *dir, bool writable, struct image_spec *spec)
{
	*spec = (struct image_spec){ .ram_path = g_build_filename(dir, "ram", NULL), .ram_pages = bed->region[0].pages,
	                             .disk_count = bed->regions - 1, .disks_writable = writable };
	for (unsigned i = 1; i < bed->regions; i++) {
		g_autofree char *name = g_strdup_printf("disk%u", i - 1);
		spec->disk_dir[i - 1] = g_build_filename(dir, name, NULL);
		spec->disk_blocks[i - 1] = bed->region[i].pages;
	}
}

static void free_spec(struct image_spec *spec)
{
	g_free((char *)spec->ram_path);
	for (unsigned i = 0; i < VCFT_DISK_MAX; i++)
		g_free((char *)spec->disk_dir[i]);
}

struct sink_user { struct bed *bed; const char *dir; };

static bool on_spec(struct vm_id vm, struct image_spec *ret_spec, void *user)
{
	struct sink_user *u = user;
	if (vm.n != 7)
		return false;
	fill_spec(u->bed, u->dir, true, ret_spec);
	return true;
}

static void on_verify_failed(struct vm_id vm, struct epoch_id r, void *user)
{
	(void)vm, (void)r;
	g_atomic_int_inc(&((struct sink_user *)user)->bed->verify_failures);
}

static void on_stored(struct vm_id vm, struct epoch_id r, bool ok, host_mask complete, host_mask failed, const struct source_stats *stats,
                      void *user)
{
	struct bed *bed = user;
	g_assert_cmpuint(vm.n, ==, 7);
	g_mutex_lock(&bed->lock);
	bed->stored_count++;
	bed->stored_epoch = r;
	bed->stored_ok = ok;
	bed->stored_complete = complete;
	bed->stored_failed = failed;
	bed->stats = *stats;
	g_strlcpy(bed->why, stats->why ? stats->why : "", sizeof bed->why);
	g_cond_broadcast(&bed->changed);
	g_mutex_unlock(&bed->lock);
}

static void region_new(struct bed_region *r, uint64_t pages)
{
	r->pages = pages;
	r->live = g_malloc0(pages * VCFT_PAGE_SIZE);
	r->committed = g_malloc0(pages * VCFT_PAGE_SIZE);
	r->captured = g_malloc0(pages * VCFT_PAGE_SIZE);
	r->live_has = g_new0(bool, pages);
	r->committed_has = g_new0(bool, pages);
	r->dirty = g_new0(bool, pages);
	r->index = g_new0(uint64_t, pages);
	r->data = g_new0(const uint8_t *, pages);
}

struct tls_credentials *bed_credentials(struct host_id host)
{
	g_autofree char *name = g_strdup_printf("host%u", host.n);
	return g_getenv("VCFT_TEST_TLS") ? pki_test_credentials(name) : NULL;
}

static struct sink_user users[BED_BACKUPS];

static void backup_new(struct bed *bed, unsigned n, const struct bed_options *o)
{
	static const struct sink_callbacks callbacks = { on_verify_failed, on_spec };
	struct bed_backup *b = &bed->backup[n];
	struct sink_limits limits = { o->stage_bytes, o->memory_bytes };
	GError *error = NULL;
	b->dir = g_strdup_printf("%s/backup%u", bed->dir, n);
	g_assert_cmpint(g_mkdir_with_parents(b->dir, 0700), ==, 0);
	users[n] = (struct sink_user){ bed, b->dir };
	b->credentials = bed_credentials(bed_host(n));
	b->sink = sink_new(bed_host(n), "127.0.0.1", &b->port, b->credentials, &limits, &callbacks, &users[n], &error);
	g_assert_no_error(error);
	sink_name_host(b->sink, (struct host_id){ 1 }, "host1");
	sink_generation(b->sink, bed->generation);
}

struct bed *bed_new(const struct bed_options *o)
{
	static const struct source_callbacks callbacks = { on_stored };
	struct bed *bed = g_new0(struct bed, 1);
	struct image_spec spec;
	GError *error = NULL;
	bed->dir = o->dir ? g_strdup(o->dir) : bed_temp();
	bed->generation.n = 1;
	bed->regions = 1 + o->disks;
	region_new(&bed->region[0], o->ram_pages ? o->ram_pages : 600);
	for (unsigned i = 1; i < bed->regions; i++)
		region_new(&bed->region[i], (o->disk_blocks ? o->disk_blocks : 100) + 37 * (i - 1));
	g_mutex_init(&bed->lock);
	g_cond_init(&bed->changed);
	fill_spec(bed, bed->dir, false, &spec);
	bed->shadow = image_open(&spec, &error);
	g_assert_no_error(error);
	free_spec(&spec);
	bed->credentials = bed_credentials((struct host_id){ 1 });
	struct source_options options = { .vm = { 7 }, .name = "vm7", .self = { 1 }, .credentials = bed->credentials, .fill_bytes = o->fill_bytes,
	                                  .timeout_ms = o->timeout_ms, .rate_least = o->rate_least };
	bed->source = source_new(&options, bed->shadow, &callbacks, bed, &error);
	g_assert_no_error(error);
	for (unsigned i = 0; i < o->backups; i++)
		backup_new(bed, i, o);
	return bed;
}

void bed_free(struct bed *bed)
{
	source_free(bed->source);
	tls_credentials_free(bed->credentials);
	for (unsigned i = 0; i < BED_BACKUPS; i++) {
		sink_free(bed->backup[i].sink);
		tls_credentials_free(bed->backup[i].credentials);
		g_free(bed->backup[i].dir);
	}
	image_remove(bed->shadow);
	for (unsigned i = 0; i < bed->regions; i++) {
		struct bed_region *r = &bed->region[i];
		g_free(r->live), g_free(r->committed), g_free(r->captured), g_free(r->live_has), g_free(r->committed_has);
		g_free(r->dirty), g_free(r->index), g_free(r->data);
	}
	bed_remove_tree(bed->dir);
	g_free(bed->dir);
	g_mutex_clear(&bed->lock);
	g_cond_clear(&bed->changed);
	g_free(bed);
}

/* ---- the guest ---- */
void bed_write(struct bed *bed, unsigned region, uint64_t page, unsigned kind)
{
	struct bed_region *r = &bed->region[region];
	uint8_t *at = r->live + page * VCFT_PAGE_SIZE;
	r->dirty[page] = r->live_has[page] = true;
	if (kind == 0)
		for (unsigned i = 0; i < 8; i++)
			at[bed_random() % VCFT_PAGE_SIZE] = (uint8_t)bed_random();
	else if (kind == 1)
		for (unsigned i = 0; i < VCFT_PAGE_SIZE; i += 8)
			memcpy(at + i, &(uint64_t){ bed_random() }, 8);
	else if (kind == 2)
		memset(at, 0, VCFT_PAGE_SIZE);
}

void bed_write_some(struct bed *bed, unsigned pages)
{
	for (unsigned i = 0; i < pages; i++) {
		unsigned region = (unsigned)(bed_random() % bed->regions);
		bed_write(bed, region, bed_random() % bed->region[region].pages, (unsigned)(bed_random() % 4));
	}
}

/* ---- the host ---- */
void bed_set_backups(struct bed *bed, unsigned mask, unsigned complete)
{
	struct source_backup list[BED_BACKUPS] = { 0 };
	unsigned n = 0;
	host_mask c = 0;
	for (unsigned i = 0; i < BED_BACKUPS; i++) {
		if (!(mask >> i & 1))
			continue;
		list[n].host = bed_host(i);
		g_snprintf(list[n].name, sizeof list[n].name, "host%u", bed_host(i).n);
		strcpy(list[n].address, "127.0.0.1");
		list[n++].port = bed->backup[i].port;
		if (complete >> i & 1)
			c |= host_bit(bed_host(i));
	}
	source_set_backups(bed->source, list, n, c);
}

static void capture(struct bed_region *r)
{
	r->count = 0;
	memcpy(r->captured, r->live, r->pages * VCFT_PAGE_SIZE);
	for (uint64_t p = 0; p < r->pages; p++)
		if (r->dirty[p]) {
			r->index[r->count] = p;
			r->data[r->count++] = r->captured + p * VCFT_PAGE_SIZE;
		}
}

struct epoch_id bed_send(struct bed *bed)
{
	struct source_epoch e = { .generation = bed->generation };
	bed->last = e.epoch = epoch_next(bed->last);
	for (unsigned i = 0; i < bed->regions; i++) {
		struct bed_region *r = &bed->region[i];
		capture(r);
		e.region[i] = (struct source_pages){ r->count, r->index, r->data };
	}
	XXH128_hash_t h = bed->no_hash ? (XXH128_hash_t){ 0 } : XXH3_128bits(bed->region[0].captured, bed->region[0].pages * VCFT_PAGE_SIZE);
	e.ram_hash[0] = bed->ram_hash[0] = h.low64 ^ bed->wrong_hash;
	e.ram_hash[1] = bed->ram_hash[1] = h.high64;
	g_snprintf(bed->devices, sizeof bed->devices, "devices of %" G_GUINT64_FORMAT, (guint64)e.epoch.n);
	e.devices = (const uint8_t *)bed->devices;
	e.devices_bytes = strlen(bed->devices);
	source_send(bed->source, &e);
	return e.epoch;
}

void bed_record(struct bed *bed, struct epoch_id r)
{
	g_snprintf(bed->record, sizeof bed->record, "record of %" G_GUINT64_FORMAT, (guint64)r.n);
	g_autoptr(GBytes) record = g_bytes_new(bed->record, strlen(bed->record));
	source_record(bed->source, r, record);
}

bool bed_wait(struct bed *bed, struct epoch_id r)
{
	gint64 end = g_get_monotonic_time() + 30 * G_TIME_SPAN_SECOND;
	g_mutex_lock(&bed->lock);
	while (bed->stored_epoch.n != r.n)
		g_assert_true(g_cond_wait_until(&bed->changed, &bed->lock, end));
	bool ok = bed->stored_ok;
	g_mutex_unlock(&bed->lock);
	return ok;
}

/* What the disk plugin does with the epoch's log. */
static void plugin_commit(struct bed *bed, unsigned region)
{
	struct bed_region *r = &bed->region[region];
	g_autofree char *overlay = g_strdup_printf("%s/disk%u/overlay", bed->dir, region - 1);
	g_autofree char *map = g_strdup_printf("%s/disk%u/map", bed->dir, region - 1);
	g_autofree char *sums = g_strdup_printf("%s/disk%u/sums", bed->dir, region - 1);
	int fd = open(overlay, O_RDWR), map_fd = open(map, O_RDWR), sums_fd = open(sums, O_RDWR);
	if (fd < 0 || map_fd < 0 || sums_fd < 0)
		g_error("%s: %s", overlay, g_strerror(errno));
	for (size_t i = 0; i < r->count; i++) {
		uint8_t byte;
		g_assert_cmpint(pwrite(fd, r->data[i], VCFT_PAGE_SIZE, (off_t)(r->index[i] * VCFT_PAGE_SIZE)), ==, VCFT_PAGE_SIZE);
		g_assert_cmpint(pread(map_fd, &byte, 1, (off_t)(r->index[i] / 8)), ==, 1);
		byte |= (uint8_t)(1u << (r->index[i] % 8));
		uint64_t sum = sum_page(r->data[i], r->index[i]);
		g_assert_cmpint(pwrite(sums_fd, &sum, sizeof sum, (off_t)(r->index[i] * sizeof sum)), ==, sizeof sum);
		g_assert_cmpint(pwrite(map_fd, &byte, 1, (off_t)(r->index[i] / 8)), ==, 1);
	}
	close(fd);
	close(map_fd);
	close(sums_fd);
}

void bed_commit_source(struct bed *bed, struct epoch_id r)
{
	source_commit(bed->source, r);
	for (unsigned i = 0; i < bed->regions; i++) {
		struct bed_region *g = &bed->region[i];
		if (i)
			plugin_commit(bed, i);
		memcpy(g->committed, g->captured, g->pages * VCFT_PAGE_SIZE);
		for (size_t k = 0; k < g->count; k++) {
			uint64_t p = g->index[k];
			g->committed_has[p] = true;
			/* written again since the capture: still dirty (the tests write between send and commit) */
			g->dirty[p] = memcmp(g->live + p * VCFT_PAGE_SIZE, g->captured + p * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE) != 0;
		}
	}
	bed->committed = r;
}

void bed_commit(struct bed *bed, struct epoch_id r)
{
	bed_commit_source(bed, r);
	for (unsigned i = 0; i < BED_BACKUPS; i++)
		if (bed->backup[i].sink)
			sink_commit(bed->backup[i].sink, r);
}

void bed_abort(struct bed *bed, struct epoch_id r)
{
	source_abort(bed->source, r);
	for (unsigned i = 0; i < bed->regions; i++)    /* abort says that nothing is read any more */
		memset(bed->region[i].captured, 0xaa, bed->region[i].pages * VCFT_PAGE_SIZE);
	for (unsigned i = 0; i < BED_BACKUPS; i++)
		if (bed->backup[i].sink)
			sink_discard(bed->backup[i].sink, r);
}

struct epoch_id bed_epoch(struct bed *bed)
{
	struct epoch_id r = bed_send(bed);
	bed_record(bed, r);
	if (!bed_wait(bed, r))
		g_error("epoch %" G_GUINT64_FORMAT ": %s", (guint64)r.n, bed->why);
	bed_commit(bed, r);
	return r;
}

static void check_held(struct bed *bed, const struct message_holding *h)
{
	g_assert_cmpuint(h->vm.n, ==, 7);
	g_assert_false(h->live);
	g_assert_cmpuint(h->image.n, <=, bed->committed.n);
	g_assert_cmpuint(h->complete.n, <=, MAX(h->image.n, h->staged.n));
}

unsigned bed_recover(struct bed *bed)
{
	unsigned complete = 0;
	bed->generation.n++;
	for (unsigned i = 0; i < BED_BACKUPS; i++) {
		struct message_holding h[VCFT_VM_MAX];
		if (!bed->backup[i].sink)
			continue;
		sink_tell(bed->backup[i].sink);
		uint32_t n = sink_holdings(bed->backup[i].sink, h);
		for (uint32_t k = 0; k < n; k++) {
			check_held(bed, &h[k]);
			if (h[k].complete.n && h[k].complete.n <= bed->committed.n && h[k].image.n == bed->committed.n)
				complete |= 1u << i;
		}
		sink_generation(bed->backup[i].sink, bed->generation);
		sink_recover(bed->backup[i].sink, bed->committed);
	}
	return complete;
}

/* ---- compare ---- */
static uint8_t *map_whole(const char *path, size_t bytes)
{
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		g_error("%s: %s", path, g_strerror(errno));
	struct stat st;
	g_assert_cmpint(fstat(fd, &st), ==, 0);
	g_assert_cmpuint((size_t)st.st_size, ==, bytes);
	uint8_t *copy = g_malloc(bytes);
	g_assert_cmpint(pread(fd, copy, bytes, 0), ==, (gssize)bytes);
	close(fd);
	return copy;
}

static void check_disk(struct bed *bed, const char *dir, unsigned region)
{
	struct bed_region *r = &bed->region[region];
	g_autofree char *overlay_path = g_strdup_printf("%s/disk%u/overlay", dir, region - 1);
	g_autofree char *map_path = g_strdup_printf("%s/disk%u/map", dir, region - 1);
	g_autofree uint8_t *overlay = map_whole(overlay_path, r->pages * VCFT_PAGE_SIZE);
	g_autofree uint8_t *map = map_whole(map_path, (r->pages + 7) / 8);
	g_autofree char *sums_path = g_strdup_printf("%s/disk%u/sums", dir, region - 1);
	g_autofree uint64_t *sums = (uint64_t *)(void *)map_whole(sums_path, r->pages * sizeof *sums);
	for (uint64_t p = 0; p < r->pages; p++) {
		g_assert_cmpuint(map[p / 8] >> (p % 8) & 1, ==, r->committed_has[p]);
		g_assert_cmpuint(sums[p], ==, r->committed_has[p] ? sum_page(r->committed + p * VCFT_PAGE_SIZE, p) : 0);
		if (r->committed_has[p])
			g_assert_cmpmem(overlay + p * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE, r->committed + p * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE);
	}
}

void bed_check_files(struct bed *bed, const char *dir)
{
	g_autofree char *ram_path = g_build_filename(dir, "ram", NULL);
	size_t bytes = bed->region[0].pages * VCFT_PAGE_SIZE;
	g_autofree uint8_t *ram = map_whole(ram_path, bytes);
	for (uint64_t p = 0; p < bed->region[0].pages; p++)
		g_assert_cmpmem(ram + p * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE, bed->region[0].committed + p * VCFT_PAGE_SIZE, VCFT_PAGE_SIZE);
	for (unsigned i = 1; i < bed->regions; i++)
		check_disk(bed, dir, i);
}

void bed_check_image(struct bed *bed, unsigned n) { bed_check_files(bed, bed->backup[n].dir); }
void bed_check_shadow(struct bed *bed) { bed_check_files(bed, bed->dir); }

/* ---- TCP ---- */
int bed_listen(uint16_t *ret_port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof at;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int small = 65536;    /* whoever does not read is noticed soon */
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
	g_assert_cmpint(bind(fd, (struct sockaddr *)&at, sizeof at), ==, 0);
	g_assert_cmpint(listen(fd, 8), ==, 0);
	g_assert_cmpint(getsockname(fd, (struct sockaddr *)&at, &n), ==, 0);
	*ret_port = ntohs(at.sin_port);
	return fd;
}

int bed_connect(uint16_t port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	g_assert_cmpint(connect(fd, (struct sockaddr *)&to, sizeof to), ==, 0);
	return fd;
}

bool bed_send_all(int fd, const void *data, size_t n)
{
	for (const uint8_t *at = data; n;) {
		ssize_t k = send(fd, at, n, MSG_NOSIGNAL);
		if (k <= 0)
			return false;
		at += k;
		n -= (size_t)k;
	}
	return true;
}

size_t bed_receive(int fd, void *out, size_t n, int ms)
{
	size_t got = 0;
	struct pollfd p = { .fd = fd, .events = POLLIN };
	while (got < n && poll(&p, 1, ms) > 0) {
		ssize_t k = recv(fd, (uint8_t *)out + got, n - got, 0);
		if (k <= 0)
			break;
		got += (size_t)k;
	}
	return got;
}
